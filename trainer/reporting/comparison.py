"""The model before and after training on one retrieval set: similarities, queries gained and lost."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common.console import say
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import compare
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.inference.reading import describe
from trainer.inference.text_encoder import TextEncoder

BINS, SHOWN_QUERIES, SHOWN_HITS = 50, 5, 3
METRIC = "nDCG@10"  # a query gains or loses by it


@dataclass(frozen=True)
class Shown:
    """A document that a model ranked high."""

    text: str
    similarity: float  # cosine
    right: bool  # it is relevant


@dataclass(frozen=True)
class Query:
    """A query whose ranking changed."""

    text: str
    base: float  # METRIC before training
    tuned: float  # and after
    best: dict[str, list[Shown]]  # by side (base, tuned): its highest documents


@dataclass(frozen=True)
class Comparison:
    """The model before (base) and after (tuned) on one set."""

    name: str
    queries: int
    documents: int
    table: dict[str, dict]  # see evaluation.compare
    edges: list[float]  # of the bins of cosines
    shares: dict[str, dict[str, list[float]]]  # by side, then relevant or other: the share of its pairs in each bin
    changed: dict[str, list[Query]]  # gained or lost: queries, largest change first
    read: tuple[str, ...] = ()  # lines: how both models read the texts


Vectors = tuple[np.ndarray, np.ndarray]  # queries (q, d) and documents (n, d), float32


@dataclass(frozen=True)
class Adapted:
    """A query adapter, and what loads a model whose queries pass it."""

    folder: Path
    load: Callable[[ModelConfig, str], TextEncoder]  # of a model and a device


class _Side:
    """A model's embeddings of a set, and its ranking of the documents."""

    def __init__(self, encoder: TextEncoder, data: RetrievalSet, vectors: Vectors | None):
        self.spec = encoder.spec
        if vectors is None:
            say(f"embedding {data.name} with {encoder.name}")
            vectors = encoder.queries(data.query_texts), encoder.passages(data.doc_texts)
        queries, documents = vectors
        self.per_query = score_run(data.qrels, rank_documents(queries, documents, data))
        self.queries, self.documents = _unit(queries), _unit(documents)
        self.ignored = data.ignored_documents()

    def best(self, query: int) -> list[tuple[int, float]]:
        """Returns (document, cosine) of the SHOWN_HITS best documents."""
        row = self.documents @ self.queries[query]
        ranked = [i for i in np.argsort(-row, kind="stable")[: SHOWN_HITS + 1] if i != self.ignored.get(query)]
        return [(int(i), float(row[i])) for i in ranked[:SHOWN_HITS]]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def compare_models(
    base: ModelConfig,
    tuned: ModelConfig,
    data: RetrievalSet,
    device: str,
    vectors: dict[str, Vectors | None],
    adapted: Adapted | None = None,
) -> Comparison:
    """Compares two models on a set.

    vectors: by side (base, tuned), those that the run kept; None: embedded now. adapted: the queries of `tuned` pass
    its adapter.
    """
    after = adapted.load(tuned, device) if adapted else TextEncoder(tuned, device)
    encoders = {"base": TextEncoder(base, device), "tuned": after}
    sides = {side: _Side(encoder, data, vectors[side]) for side, encoder in encoders.items()}
    base, tuned = sides["base"].per_query, sides["tuned"].per_query
    similarities, changed = _similarities(sides, data), _changed(sides, data)
    read = tuple(describe({"before": sides["base"].spec, "after": sides["tuned"].spec}))
    read += (f"after: queries pass the adapter {adapted.folder}",) if adapted else ()
    return Comparison(data.name, len(tuned), len(data.doc_ids), compare(base, tuned), *similarities, changed, read)


def _similarities(sides: dict[str, _Side], data: RetrievalSet) -> tuple[list[float], dict[str, dict]]:
    """Returns Comparison.edges and .shares of every query with its relevant documents, and with all others."""
    number_of = {doc: i for i, doc in enumerate(data.doc_ids)}
    edges = np.linspace(-1.0, 1.0, 2 * BINS + 1)
    ignored = data.ignored_documents()
    counts = {side: {"relevant": np.zeros(2 * BINS), "other": np.zeros(2 * BINS)} for side in sides}
    for number, query in enumerate(data.query_ids):
        right = [number_of[doc] for doc, grade in data.qrels[query].items() if grade > 0 and doc in number_of]
        not_other = [*right, ignored[number]] if number in ignored else right
        for side, model in sides.items():
            row = (model.documents @ model.queries[number]).clip(-1, 1)
            counts[side]["relevant"] += np.histogram(row[right], edges)[0]
            counts[side]["other"] += np.histogram(np.delete(row, not_other), edges)[0]
    used = np.flatnonzero(sum(kind for of in counts.values() for kind in of.values()))
    first, last = used[0], used[-1] + 1
    shares = {
        side: {name: (kind / max(kind.sum(), 1))[first:last].tolist() for name, kind in of.items()}
        for side, of in counts.items()
    }
    return edges[first : last + 1].tolist(), shares


def _changed(sides: dict[str, _Side], data: RetrievalSet) -> dict[str, list[Query]]:
    """Returns the queries that gained and lost most."""
    base, tuned = sides["base"].per_query, sides["tuned"].per_query
    gains = [tuned[query][METRIC] - base[query][METRIC] for query in data.query_ids]
    order = sorted(range(len(gains)), key=lambda number: -gains[number])  # ties stay in the order of the queries
    gained = [number for number in order[:SHOWN_QUERIES] if gains[number] > 0]
    lost = [number for number in reversed(order[-SHOWN_QUERIES:]) if gains[number] < 0]
    return {
        kind: [_query(number, sides, data) for number in numbers]
        for kind, numbers in (("gained", gained), ("lost", lost))
    }


def _query(number: int, sides: dict[str, _Side], data: RetrievalSet) -> Query:
    query = data.query_ids[number]
    best = {
        side: [
            Shown(data.doc_texts[i], cosine, data.qrels[query].get(data.doc_ids[i], 0) > 0)
            for i, cosine in model.best(number)
        ]
        for side, model in sides.items()
    }
    base, tuned = (sides[side].per_query[query][METRIC] for side in ("base", "tuned"))
    return Query(data.query_texts[number], base, tuned, best)
