"""Evaluates the model that an engine holds, or a model folder."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.sections import ModelConfig
from trainer.engine.protocol import Engine
from trainer.evaluation.compare import PerQuery, Scores
from trainer.evaluation.metric_names import measured_on
from trainer.evaluation.pair_metrics import PairScores
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.encode import Encoded, encode, encode_share, gather
from trainer.inference.metrics import DEPTH
from trainer.inference.text_encoder import TextEncoder
from trainer.ranking.retrieval import rank_set


def evaluate_engine(
    engine: Engine,
    tokenizer,
    spec,
    data: RetrievalSet | ScoredPairs,
    metrics: Sequence[str] = (),
    keep: Callable[[Tensor, Encoded], None] | None = None,
) -> Scores | None:
    """Scores of the model an engine holds; on rank 0, None elsewhere. Collective: ranks embed and search their shares
    of the documents.

    Memory of a rank: its share, all queries, and what ranking/search.py states; of scored pairs all embeddings.
    metrics: those of them that the set measures; none of them: the defaults of its kind. keep: gets the embeddings of
    all queries, (q, d), and of this rank's documents; collective.
    """
    rules = spec.rules
    of_queries, of_passages = (rules.query_prompt, rules.query_max_len), (rules.passage_prompt, rules.passage_max_len)
    queries = encode(engine, tokenizer, data.query_texts, *of_queries, "embedding queries")
    documents = encode_share(engine, tokenizer, data.doc_texts, *of_passages, "embedding documents")
    if keep:
        keep(queries, documents)
    return score_share(engine, data, queries, documents, metrics)


def evaluate_folder(
    config: ModelConfig, data: RetrievalSet, device: str = "auto", metrics: Sequence[str] = ()
) -> PerQuery:
    """Returns per-query metrics of a model folder or hub id, in one process."""
    return evaluate_encoder(TextEncoder(config, device), data, metrics)


def evaluate_encoder(
    encoder: TextEncoder, data: RetrievalSet | ScoredPairs, metrics: Sequence[str] = ()
) -> Scores | None:
    """Same as evaluate_engine, of a model folder. Raises Failed for embeddings that are no numbers."""
    queries, documents = torch.from_numpy(encoder.queries(data.query_texts)), encoder.passage_share(data.doc_texts)
    return score_share(encoder.loaded[0], data, queries, documents, metrics)


def score_share(
    engine: Engine, data: RetrievalSet | ScoredPairs, queries: Tensor, documents: Encoded, metrics: Sequence[str]
) -> Scores | None:
    """Returns the scores of embeddings, on rank 0; None elsewhere. Collective. queries: (q, d), the same on every rank.
    documents: of this rank."""
    world, names = engine.world, measured_on(data, metrics)
    if isinstance(data, ScoredPairs):
        gathered = gather(engine, documents)
        if world.rank:
            return None
        return PairScores(cosines(data, queries.numpy(), gathered.numpy()), np.array(data.scores), names)
    per_query: PerQuery = {}
    for run in rank_set(world, queries, documents.vectors, documents.rows, data, engine.device, DEPTH):
        per_query |= score_run({query: data.qrels[query] for query in run}, run, names)
    return None if world.rank else per_query


def cosines(data: ScoredPairs, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns the cosine of every pair, (pairs,) float64."""
    left, right = np.array(data.pairs).T
    lengths = [np.linalg.norm(side.astype(np.float64), axis=1).clip(min=1e-12) for side in (queries, documents)]
    products = np.einsum("pd,pd->p", queries[left].astype(np.float64), documents[right].astype(np.float64))
    return products / (lengths[0][left] * lengths[1][right])
