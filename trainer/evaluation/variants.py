"""One embedding of a set, scored at several sizes and with quantised vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.evaluation.compare import Scores
from trainer.evaluation.measure import evaluate_encoder, score
from trainer.evaluation.metric_names import measured_on
from trainer.evaluation.quantised import rank_quantised
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.text_encoder import TextEncoder


@dataclass(frozen=True)
class Variant:
    """A form of the vectors."""

    size: int  # numbers of an embedding
    vectors: str = "float32"  # or one of quantised.QUANTISED
    rescored: bool = False  # the first documents, by the query's own floats

    @property
    def label(self) -> str:
        return f"{self.size} {self.vectors}{', rescored' if self.rescored else ''}"


def evaluate_variants(
    encoder: TextEncoder,
    data: RetrievalSet | ScoredPairs,
    metrics: Sequence[str],
    sizes: Sequence[int],
    quantised: Sequence[str],
) -> dict[Variant, Scores]:
    """Returns the scores of every form, the model's own vectors first; on rank 0. Collective.
    Raises BadInput for a size above the model's.

    sizes: beside the model's own (Matryoshka, Kusupati et al. 2022, arXiv:2205.13147): the first numbers, normalised
    again where the model normalises. quantised: of quantised.QUANTISED, at every size; retrieval sets only.
    """
    own = encoder.size
    if too_large := [size for size in sizes if size > own]:
        stated = ", ".join(map(str, too_large))
        raise BadInput(f"--dims {stated}: {encoder.config.path} makes embeddings of {own} numbers")
    sizes = [own, *(size for size in dict.fromkeys(sizes) if size != own)]
    quantised = quantised if isinstance(data, RetrievalSet) else ()
    if len(sizes) == 1 and not quantised:
        return {Variant(own): evaluate_encoder(encoder, data, metrics)}
    sides = encoder.queries(data.query_texts), encoder.passages(data.doc_texts)
    if encoder.loaded[0].world.rank:
        return {}
    scores: dict[Variant, Scores] = {}
    for size in sizes:
        queries, documents = (cut(side, size, encoder.spec.normalize) for side in sides)
        scores[Variant(size)] = score(data, queries, documents, metrics)
        for kind in quantised:
            names, runs = measured_on(data, metrics), rank_quantised(queries, documents, data, kind)
            for rescored, run in enumerate(runs):
                scores[Variant(size, kind, bool(rescored))] = score_run(data.qrels, run, names)
    return scores


def cut(vectors: np.ndarray, size: int, normalise: bool) -> np.ndarray:
    """Returns the first `size` numbers of (n, d). Fewer than d are normalised again, where the model normalises."""
    if size == vectors.shape[1]:
        return vectors
    first = np.ascontiguousarray(vectors[:, :size])
    return first / np.linalg.norm(first, axis=1, keepdims=True).clip(min=1e-12) if normalise else first
