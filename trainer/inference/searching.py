"""Search with a model, in memory or in a store that holds its vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.stores.base import Collection
from trainer.inference.reindexing import DIM, FINGERPRINT, STATE, UNFINISHED
from trainer.inference.text_encoder import TextEncoder

PROBED = 8  # chunks embedded again to see whose vectors a collection holds
SAME = 0.99  # cosine: the same model with another length or runtime stays above, other models far below


@dataclass(frozen=True)
class Hit:
    """A chunk that a query matched."""

    id: str
    text: str
    similarity: float  # cosine of query and chunk, -1 to 1


Searcher = Callable[[list[str], int], list[list[Hit]]]


def in_memory(encoder: TextEncoder, ids: list[str], texts: list[str]) -> Searcher:
    """Returns an exact search over texts, which are embedded now."""
    documents = encoder.passages(texts)

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        hits = []
        for row, vector in zip(vectors @ documents.T, vectors):
            best = np.argsort(-row, kind="stable")[:k]
            hits.append([Hit(ids[i], texts[i], _cosine(vector, documents[i])) for i in best])
        return hits

    return search


def in_store(encoder: TextEncoder, collection: Collection, where: dict | None) -> Searcher:
    """Returns the store's own search over its vectors."""

    def search(queries: list[str], k: int) -> list[list[Hit]]:
        vectors = encoder.queries(queries)
        answers = collection.query(vectors, k, where)
        return [
            [Hit(chunk.id, chunk.text, _cosine(vector, chunk.embedding)) for chunk in answer]
            for vector, answer in zip(vectors, answers)
        ]

    return search


def over_collection(encoder: TextEncoder, collection: Collection, where: dict | None) -> Searcher:
    """Returns the store's search if its vectors are this model's; else its texts are embedded here, with a note."""
    if collection.about.get(STATE) == UNFINISHED:
        say(f"note: {collection.name} is unfinished: reindex was stopped before its end")
    if holds(encoder, collection):
        return in_store(encoder, collection, where)
    chunks = [(chunk.id, chunk.text) for chunk in collection.chunks(where)]
    if not chunks:
        raise BadInput(f"--collection {collection.name}: no chunk" + (" fits --where" if where else ""))
    say(
        f"{collection.name} holds no vectors of {encoder.config.path}: "
        f"embedding its {len(chunks):,} texts here (python -m trainer.reindex stores them)"
    )
    return in_memory(encoder, *map(list, zip(*chunks)))


def holds(encoder: TextEncoder, collection: Collection) -> bool:
    """True if the collection's vectors are this model's: reindex recorded it, or a few chunks are embedded again and
    compared. Sets encoder.dim where only the first numbers are stored."""
    size, facts = collection.size, collection.about
    if size is None:
        return False
    if FINGERPRINT in facts:
        if facts[FINGERPRINT] != encoder.fingerprint:
            return False
        encoder.dim = facts[DIM] if facts[DIM] < encoder.size else None
        return True
    if size != encoder.size:
        return False
    stored = list(islice(collection.chunks(page=PROBED, embeddings=True), PROBED))
    own = encoder.passages([chunk.text for chunk in stored])
    return bool(stored) and min(_cosine(vector, chunk.embedding) for vector, chunk in zip(own, stored)) >= SAME


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0
