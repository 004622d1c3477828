"""Definitions of this subject."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.common.console import say
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.config.sections import ModelConfig
from trainer.inference.metrics import rank_documents, score_run
from trainer.inference.text_encoder import TextEncoder

BINS, SHOWN_QUERIES, SHOWN_HITS = 50, 5, 3
METRIC = "nDCG@10"  # by which queries have gained or lost


@dataclass(frozen=True)
class Shown:
    """A document that a model found. similarity: cosine; right: it is relevant."""

    text: str
    similarity: float
    right: bool


@dataclass(frozen=True)
class Query:
    """A query whose ranking changed. found: side (base, tuned) -> its best documents."""

    text: str
    base: float
    tuned: float
    found: dict[str, list[Shown]]


@dataclass
class Comparison:
    """The model before and after on one set. table: see evaluate.compare. edges: of the bins; shares: side -> relevant
    or other -> share of its pairs in each bin. changed: gained or lost -> queries, the largest change first.
    """

    name: str
    queries: int
    documents: int
    table: dict[str, dict]
    edges: list[float] = field(default_factory=list)
    shares: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    changed: dict[str, list[Query]] = field(default_factory=dict)


class _Side:
    """A model's embeddings of a set, and what it finds there."""

    def __init__(self, config: ModelConfig, data: RetrievalSet, device: str):
        say(f"embedding {data.name} with {config.path}")
        encoder = TextEncoder(config, device)
        queries, documents = encoder.queries(data.query_texts), encoder.passages(data.doc_texts)
        self.per_query = score_run(data.qrels, rank_documents(queries, documents, data))
        self.queries, self.documents = _unit(queries), _unit(documents)

    def best(self, query: int) -> list[tuple[int, float]]:
        """(document, cosine), SHOWN_HITS of them."""
        row = self.documents @ self.queries[query]
        return [(int(i), float(row[i])) for i in np.argsort(-row, kind="stable")[:SHOWN_HITS]]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def _add_similarities(made: Comparison, sides: dict[str, _Side], data: RetrievalSet) -> None:
    """Cosines of every query with its relevant documents, and with all others."""
    place = {doc: i for i, doc in enumerate(data.doc_ids)}
    edges = np.linspace(-1.0, 1.0, 2 * BINS + 1)
    counts = {side: {"relevant": np.zeros(2 * BINS), "other": np.zeros(2 * BINS)} for side in sides}
    for number, query in enumerate(data.query_ids):
        right = [place[doc] for doc, grade in data.qrels[query].items() if grade > 0 and doc in place]
        for side, model in sides.items():
            row = (model.documents @ model.queries[number]).clip(-1, 1)
            counts[side]["relevant"] += np.histogram(row[right], edges)[0]
            counts[side]["other"] += np.histogram(np.delete(row, right), edges)[0]
    used = np.flatnonzero(sum(kind for of in counts.values() for kind in of.values()))
    first, last = used[0], used[-1] + 1
    made.edges = [float(edge) for edge in edges[first : last + 1]]
    made.shares = {
        side: {name: (kind / max(kind.sum(), 1))[first:last].tolist() for name, kind in of.items()}
        for side, of in counts.items()
    }


def _add_queries(made: Comparison, sides: dict[str, _Side], data: RetrievalSet) -> None:
    scores = [
        (sides["tuned"].per_query[query][METRIC] - sides["base"].per_query[query][METRIC], number)
        for number, query in enumerate(data.query_ids)
    ]
    ordered = sorted(scores, key=lambda entry: (-entry[0], entry[1]))
    chosen = {
        "gained": [number for change, number in ordered[:SHOWN_QUERIES] if change > 0],
        "lost": [number for change, number in reversed(ordered[-SHOWN_QUERIES:]) if change < 0],
    }
    for kind, numbers in chosen.items():
        made.changed[kind] = [_query(number, sides, data) for number in numbers]


def _query(number: int, sides: dict[str, _Side], data: RetrievalSet) -> Query:
    query = data.query_ids[number]
    found = {
        side: [
            Shown(data.doc_texts[i], cosine, data.qrels[query].get(data.doc_ids[i], 0) > 0)
            for i, cosine in model.best(number)
        ]
        for side, model in sides.items()
    }
    base, tuned = (sides[side].per_query[query][METRIC] for side in ("base", "tuned"))
    return Query(data.query_texts[number], base, tuned, found)
