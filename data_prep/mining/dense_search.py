"""Texts ranked by the inner product of their embedding and the query's."""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from data_prep.common.console import say
from data_prep.mining.candidates import Corpus
from data_prep.mining.ranker import Ranked, best
from data_prep.mining.vector_cache import VectorCache

GATHERED = 16_384  # embeddings of passages read from disk at a time
SAMPLED = 64  # queries searched both ways, to measure the recall of the index
SCORES_AT_ONCE = 1 << 26  # float32 scores in memory at a time: 256 MiB


class Encoder(Protocol):
    """An embedding model, as mining sees it."""

    digest: str  # of everything that changes an embedding
    size: int  # numbers of an embedding
    unit: bool  # embeddings have length 1
    max_len: int  # tokens of a text, its prompt included
    texts_at_once: int  # that it embeds well

    def queries(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, size) float32, whose inner products are similarities, and (n,) bool: the text was truncated."""

    def passages(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]: ...


class Searcher(Protocol):
    """Exact search of its own, in place of ours in numpy."""

    def hold(self, read: Callable[[int, int], np.ndarray], count: int) -> None:
        """Takes the vectors of `count` texts. read(first, last): (last - first, size) float32."""

    def search(self, queries: np.ndarray, banned: list[np.ndarray], depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each query the numbers of its `depth` best texts, and their scores; equal scores by number.
        banned: for each query, numbers that it must not find."""


class Dense:
    """Search by inner product: exact up to `approximate_above` candidates, by an index above.

    passages, queries: embeddings on disk. searcher: searches exactly in place of numpy. Memory: 256 MiB for a block of
    scores (or what the searcher takes), 8 bytes per text, and the index.
    """

    name = "embeddings"

    def __init__(
        self,
        corpus: Corpus,
        passages: VectorCache,
        queries: VectorCache,
        approximate_above: int,
        searcher: Searcher | None = None,
    ):
        self.corpus, self.passages, self.queries = corpus, passages, queries
        self.searcher = None
        self.rows = np.full(len(corpus.texts), -1)  # row of each text in `passages`; -1: not computed yet
        chosen = corpus.texts[: corpus.candidates]
        self.rows[: corpus.candidates] = passages.rows(chosen, "embedding passages")
        self.cut_queries: set[int] = set()
        self.index = None
        if corpus.candidates > approximate_above:
            self._build_index(approximate_above)
        if searcher and not self.index:
            searcher.hold(self._embeddings, corpus.candidates)
            self.searcher = searcher

    def _build_index(self, approximate_above: int) -> None:
        size = self.corpus.candidates
        if sys.platform == "darwin":
            say(f"{size:,} texts are searched exactly: faiss crashes beside torch on macOS")
            return
        from data_prep.mining.ann_index import ApproximateIndex

        say(
            f"{size:,} texts to search, more than {approximate_above:,}: an index finds the candidates approximately, "
            "their scores are exact (--approximate-above)"
        )
        self.index = ApproximateIndex(self._embeddings, size, self.passages.size)
        self.tuned = False

    def rank(self, queries: list[str], banned: list[np.ndarray], stop: int) -> list[Ranked]:
        banned = [places[places < self.corpus.candidates] for places in banned]
        vectors = self._queries(queries)
        if self.searcher:
            found = self.searcher.search(vectors, banned, stop)
            return [self._with_banned(*row, stop) for row in zip(vectors, banned, found)]
        if not self.index:
            return self._exact(vectors, banned, stop)
        count = stop + max(map(len, banned))
        if not self.tuned:
            exact = self._exact(vectors[:SAMPLED], banned[:SAMPLED], stop)
            self.index.tune(vectors[:SAMPLED], [ranked.places for ranked in exact], count)
            self.tuned = True
        return self._approximate(vectors, banned, stop, count)

    def _exact(self, queries: np.ndarray, banned: list[np.ndarray], stop: int) -> list[Ranked]:
        ranked, size = [], self.corpus.candidates
        at_once = max(1, SCORES_AT_ONCE // size)
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            scores = np.empty((len(block), size), np.float32)
            for first in range(0, size, GATHERED):
                last = min(size, first + GATHERED)
                np.matmul(block, self._embeddings(first, last).T, out=scores[:, first:last])
            ranked += [_ranked(row, row_banned, stop) for row, row_banned in zip(scores, banned[start:])]
        return ranked

    def _with_banned(
        self, query: np.ndarray, banned: np.ndarray, found: tuple[np.ndarray, np.ndarray], stop: int
    ) -> Ranked:
        places, scores = found
        last = scores[-1] if len(places) == stop else -float("inf")
        return Ranked(places, int((self.passages.all[self.rows[banned]] @ query > last).sum()))

    def _approximate(self, queries: np.ndarray, banned: list[np.ndarray], stop: int, count: int) -> list[Ranked]:
        results = []
        for query, near, row_banned in zip(queries, self.index.search(queries, count), banned):
            scores = self.passages.all[self.rows[near]] @ query
            ranked = _ranked(scores, np.flatnonzero(np.isin(near, row_banned)), stop)
            results.append(Ranked(near[ranked.places], ranked.banned))
        return results

    def scores(self, queries: list[str], places: list[np.ndarray]) -> list[np.ndarray]:
        needed = np.unique(np.concatenate(places)) if places else np.empty(0, np.int64)
        new = needed[self.rows[needed] < 0]
        self.rows[new] = self.passages.rows([self.corpus.texts[i] for i in new])
        return [self.passages.all[self.rows[some]] @ query for query, some in zip(self._queries(queries), places)]

    def _queries(self, texts: Sequence[str]) -> np.ndarray:
        rows = self.queries.rows(texts)
        self.cut_queries.update(row for row in rows.tolist() if self.queries.truncated[row])
        return self.queries.all[rows]

    def _embeddings(self, first: int, last: int) -> np.ndarray:
        """Embeddings of texts first … last-1; not copied if they are in this order on disk."""
        rows = self.rows[first:last]
        start = int(rows[0])
        if np.array_equal(rows, np.arange(start, start + len(rows))):
            return self.passages.all[start : start + len(rows)]
        return self.passages.all[rows]

    def cut(self) -> dict[str, int]:
        used = self.rows[self.rows >= 0]
        passages = int(np.frombuffer(self.passages.truncated, bool)[used].sum())
        return {f"of {len(used):,} passages": passages, "queries": len(self.cut_queries)}


def _ranked(scores: np.ndarray, banned: np.ndarray, stop: int) -> Ranked:
    """Returns the `stop` best texts. scores: (n,), overwritten. banned: numbers of texts to skip."""
    hit = scores[banned]
    scores[banned] = -float("inf")
    top = best(scores, stop)
    last = scores[top[-1]] if len(top) == stop else -float("inf")
    return Ranked(top, int((hit > last).sum()))
