"""A model folder as a stranger loads it: python -m trainer.reload FOLDER OUT.npz. See proof.load_elsewhere.

Writes `<way> query` and `<way> document` for every way of loading, and prints their names as a JSON list.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from trainer.probe import read_probe
from trainer.to_onnx import ONNX_FILE, onnx_embeddings

THEIRS, OURS, ONNX = "sentence-transformers", "trainer.inference", "onnxruntime"


def main(argv: list[str]) -> int:
    import numpy as np

    found = embeddings(Path(argv[0]))
    arrays = {f"{way} {side}": vectors for way, sides in found.items() for side, vectors in sides.items()}
    np.savez(argv[1], **arrays)
    print(json.dumps(list(found)))
    return 0


def embeddings(folder: Path) -> dict[str, dict]:
    """way of loading -> query or document -> (texts, d) float32 of the texts that the folder's probe names."""
    texts = read_probe(folder).texts
    found = {THEIRS: _theirs(folder, texts)} if find_spec("sentence_transformers") else {OURS: _ours(folder, texts)}
    if (folder / ONNX_FILE).is_file():
        found[ONNX] = onnx_embeddings(folder, texts)
    return found


def _theirs(folder: Path, texts: list[str]) -> dict:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    said = {"show_progress_bar": False}
    return {"query": model.encode_query(texts, **said), "document": model.encode_document(texts, **said)}


def _ours(folder: Path, texts: list[str]) -> dict:
    from trainer.config import ModelConfig
    from trainer.inference import TextEncoder

    encoder = TextEncoder(ModelConfig(path=str(folder)), "cpu")
    return {"query": encoder.queries(texts), "document": encoder.passages(texts)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
