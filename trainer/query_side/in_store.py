"""Metrics of a store's own search with the queries of a model whose vectors it holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.stores.base import Collection
from trainer.evaluation.compare import PerQuery
from trainer.evaluation.metric_names import measured_on
from trainer.evaluation.ranking_metrics import score_run
from trainer.evaluation.variants import Variant
from trainer.inference.metrics import DEPTH
from trainer.inference.searching import Encoder
from trainer.query_side.encoder import check_collection


def measure_in_store(
    encoder: Encoder, collection: Collection, where: dict[str, Any] | None, data: RetrievalSet, metrics: Sequence[str]
) -> dict[Variant, PerQuery]:
    """Returns the scores of the vectors as they are. data: of the same collection. Raises BadInput: it holds other
    vectors, or other documents than the encoder's adapter was trained for."""
    check_collection(encoder, collection)
    vectors = encoder.queries(data.query_texts)
    run = ranked(collection, vectors, data.query_ids, min(DEPTH, len(data.doc_ids)), where)
    return {Variant(encoder.size): score_run(data.qrels, run, measured_on(data, metrics))}


def ranked(
    collection: Collection, vectors: np.ndarray, ids: Sequence[str], k: int, where: dict[str, Any] | None
) -> dict[str, dict[str, float]]:
    """Returns id of a query -> chunk -> score, of the k best by the store's own search. vectors: of these queries."""
    answers = collection.query(vectors, k, where)
    return {
        query: {chunk.id: float(-place) for place, chunk in enumerate(chunks)} for query, chunks in zip(ids, answers)
    }
