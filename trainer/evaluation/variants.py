"""One embedding of a set, scored at several sizes and with quantised vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.evaluation.compare import Scores
from trainer.evaluation.measure import score_share
from trainer.evaluation.metric_names import measured_on
from trainer.evaluation.quantised import rank_quantised
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.encode import first_numbers, gather
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

    sizes: beside the model's own: the first numbers, normalised again where the model normalises. quantised: of
    quantised.QUANTISED, at every size; retrieval sets only. Memory: that of evaluate_engine; for quantised vectors each
    rank holds all documents.
    """
    own = encoder.size
    if too_large := [size for size in sizes if size > own]:
        stated = ", ".join(map(str, too_large))
        raise BadInput(f"--dims {stated}: {encoder.config.path} makes embeddings of {own} numbers")
    sizes = [own, *(size for size in dict.fromkeys(sizes) if size != own)]
    quantised = quantised if isinstance(data, RetrievalSet) else ()
    engine, unit = encoder.loaded[0], encoder.spec.normalize
    queries, documents = torch.from_numpy(encoder.queries(data.query_texts)), encoder.passage_share(data.doc_texts)
    scores: dict[Variant, Scores] = {}
    for size in sizes:
        asked, share = queries, documents
        if size < own:
            asked = first_numbers(queries, size, unit)
            share = replace(documents, vectors=first_numbers(documents.vectors, size, unit))
        scores[Variant(size)] = score_share(engine, data, asked, share, metrics)
        gathered = gather(engine, share).numpy() if quantised else None
        for kind in quantised if engine.world.rank == 0 else ():
            names, runs = measured_on(data, metrics), rank_quantised(asked.numpy(), gathered, data, kind)
            for rescored, run in enumerate(runs):
                scores[Variant(size, kind, bool(rescored))] = score_run(data.qrels, run, names)
    return {} if engine.world.rank else scores
