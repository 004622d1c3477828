"""Evaluates the model that an engine holds, or a model folder."""

from collections.abc import Sequence

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.sections import ModelConfig
from trainer.engine.protocol import Engine
from trainer.evaluation.compare import PerQuery, Scores
from trainer.evaluation.metric_names import measured_on
from trainer.evaluation.pair_metrics import PairScores
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.encode import encode
from trainer.inference.metrics import rank_documents
from trainer.inference.text_encoder import TextEncoder


def evaluate_engine(
    engine: Engine, tokenizer, spec, data: RetrievalSet | ScoredPairs, metrics: Sequence[str] = ()
) -> Scores | None:
    """Scores of the model an engine holds; on rank 0, None elsewhere. Collective: all ranks embed.

    metrics: those of them that the set measures; none of them: the defaults of its kind.
    """
    rules = spec.rules
    queries = encode(engine, tokenizer, data.query_texts, rules.query_prompt, rules.query_max_len)
    documents = encode(engine, tokenizer, data.doc_texts, rules.passage_prompt, rules.passage_max_len)
    if engine.world.rank:
        return None
    return score(data, queries.numpy(), documents.numpy(), metrics)


def evaluate_folder(
    config: ModelConfig, data: RetrievalSet, device: str = "auto", metrics: Sequence[str] = ()
) -> PerQuery:
    """Returns per-query metrics of a model folder or hub id, in one process."""
    encoder = TextEncoder(config, device)
    return evaluate_engine(*encoder.loaded, encoder.spec, data, metrics)


def score(
    data: RetrievalSet | ScoredPairs, queries: np.ndarray, documents: np.ndarray, metrics: Sequence[str] = ()
) -> Scores:
    """Returns the scores of a set's embeddings, (q, d) and (n, d) float32."""
    names = measured_on(data, metrics)
    if isinstance(data, RetrievalSet):
        return score_run(data.qrels, rank_documents(queries, documents, data), names)
    return PairScores(cosines(data, queries, documents), np.array(data.scores), names)


def cosines(data: ScoredPairs, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns the cosine of every pair, (pairs,) float64."""
    left, right = np.array(data.pairs).T
    lengths = [np.linalg.norm(side.astype(np.float64), axis=1).clip(min=1e-12) for side in (queries, documents)]
    products = np.einsum("pd,pd->p", queries[left].astype(np.float64), documents[right].astype(np.float64))
    return products / (lengths[0][left] * lengths[1][right])
