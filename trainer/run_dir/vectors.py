"""Embeddings of a run's evaluation set in its run directory, so that its report embeds no text again.

OUT/queries/vectors-N.safetensors: `queries` (q, d) and `documents` (n, d), float32, of the model after step N. A run
keeps those of step 0 and of its best model, and none of a set larger than MOST_BYTES. Never imports torch.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.common.files import written_aside
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.run_dir.queries import FOLDER

MOST_BYTES = 2**26  # of one model's vectors
_NAME = "vectors-{}.safetensors"


def is_small(data: RetrievalSet, size: int) -> bool:
    """Returns True if a run keeps the vectors of this set. size: numbers of an embedding."""
    return 4 * size * (len(data.query_texts) + len(data.doc_texts)) <= MOST_BYTES


def write_vectors(run_dir: Path, step: int, data: RetrievalSet, queries: np.ndarray, documents: np.ndarray) -> None:
    """queries: (q, d) float32. documents: (n, d) float32. Both in the order of the set."""
    from safetensors.numpy import save_file

    path = run_dir / FOLDER / _NAME.format(step)
    with written_aside(path) as part:
        save_file({"queries": queries, "documents": documents}, part, metadata={"texts": _fingerprint(data)})


def read_vectors(run_dir: Path, step: int, data: RetrievalSet) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns queries (q, d) and documents (n, d), float32; None if the run kept none of these texts.

    Raises BadInput for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    path = run_dir / FOLDER / _NAME.format(step)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("texts") != _fingerprint(data):
                return None
            return file.get_tensor("queries"), file.get_tensor("documents")
    except SafetensorError as error:
        raise BadInput(f"{path}: damaged ({error}); delete it, and the texts are embedded again") from error


def drop_vectors(run_dir: Path, kept: Collection[int]) -> None:
    """Removes the vectors of all steps but those in `kept`."""
    names = {_NAME.format(step) for step in kept}
    for path in (run_dir / FOLDER).glob(_NAME.format("*")):
        if path.name not in names:
            path.unlink()


def _fingerprint(data: RetrievalSet) -> str:
    texts = json.dumps([data.query_texts, data.doc_texts], ensure_ascii=False)
    return hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()
