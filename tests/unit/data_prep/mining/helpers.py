"""Shared by the tests of mining: texts whose embeddings are planted, so that every score is known."""

import numpy as np
from hypothesis import settings

from data_prep.mining.candidates import Corpus
from data_prep.mining.dense_search import Dense
from data_prep.mining.vector_cache import VectorCache
from data_prep.records import Record

QUICK = settings(max_examples=40, deadline=None)


class Planted:
    """An encoder of known vectors; other texts get a random direction of their own. asked: what it was asked."""

    unit, max_len, texts_at_once = True, 8, 512

    def __init__(self, vectors: dict[str, np.ndarray] | None = None, size: int = 8):
        self.vectors, self.size = vectors or {}, size
        self.digest = "planted"
        self.asked: list[str] = []

    def __getitem__(self, text: str) -> np.ndarray:
        if text not in self.vectors:
            seed = int.from_bytes(text.encode()[-8:], "big")
            drawn = np.random.default_rng(seed).standard_normal(self.size)
            self.vectors[text] = (drawn / np.linalg.norm(drawn)).astype(np.float32)
        return self.vectors[text]

    def queries(self, texts: list[str]):
        return self._embed([f"q:{text}" if f"q:{text}" in self.vectors else text for text in texts])

    def passages(self, texts: list[str]):
        return self._embed(texts)

    def _embed(self, texts: list[str]):
        self.asked += texts
        return np.stack([self[text] for text in texts]), np.array([len(text.split()) > self.max_len for text in texts])


def at_cosine(cosine: float, size: int = 8, axis: int = 1) -> np.ndarray:
    """A vector of length 1 with this cosine to the first axis."""
    vector = np.zeros(size, np.float32)
    vector[0], vector[axis] = cosine, np.sqrt(1 - cosine**2)
    return vector


def corpus_of(records: list[Record], same_document: str | None = None) -> Corpus:
    corpus = Corpus(same_document)
    for record in records:
        corpus.add_row(record, choose=True)
    corpus.seal()
    return corpus


def dense_of(corpus: Corpus, encoder: Planted, folder, approximate_above: int = 10**9) -> Dense:
    passages = VectorCache(folder, "passages", encoder.size, encoder.passages, 4)
    queries = VectorCache(folder, "queries", encoder.size, encoder.queries, 4)
    return Dense(corpus, passages, queries, approximate_above)
