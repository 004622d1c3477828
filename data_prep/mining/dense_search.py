"""Texts ranked by the inner product of their embedding and the query's."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from data_prep.common.console import say
from data_prep.mining.candidates import Corpus
from data_prep.mining.ranker import Ranked, best
from data_prep.mining.vector_cache import VectorCache

if TYPE_CHECKING:
    import numpy as np

EXACT_UP_TO = 200_000  # candidates, by default
GATHERED = 16_384  # embeddings of passages read from the disk at a time
SAMPLED = 64  # queries that are searched both ways, to know the recall of the index
SCORES_AT_ONCE = 1 << 26  # float32 scores held at a time: 256 MiB


class Encoder(Protocol):
    """An embedding model, as mining sees it. digest: of everything that changes an embedding. size: of an embedding.
    unit: whether embeddings have length 1. max_len: tokens that it reads of a text, its prompt included."""

    digest: str
    size: int
    unit: bool
    max_len: int

    def queries(self, texts: list[str]) -> "tuple[np.ndarray, np.ndarray]":
        """(n, size) float32 whose inner products are the similarities, and (n,) bool: whether the text was cut."""

    def passages(self, texts: list[str]) -> "tuple[np.ndarray, np.ndarray]": ...


class Dense:
    """Exact search up to `approximate_above` candidates, by an index above. passages, queries: embeddings on disk.

    Memory: 256 MiB for a block of scores, 8 bytes per text for its place on disk, and the index where there is one.
    """

    name = "embeddings"

    def __init__(self, corpus: Corpus, passages: VectorCache, queries: VectorCache, approximate_above: int):
        import numpy as np

        self.corpus, self.passages, self.queries = corpus, passages, queries
        self.rows = np.full(len(corpus.texts), -1)  # where the embedding of each text is; -1: not needed so far
        chosen = corpus.texts[: corpus.candidates]
        self.rows[: corpus.candidates] = passages.rows(chosen, "embedding passages")
        self.cut_queries: set[int] = set()
        self.index = None
        if corpus.candidates > approximate_above:
            self._build_index(approximate_above)

    def _build_index(self, approximate_above: int) -> None:
        size = self.corpus.candidates
        if sys.platform == "darwin":
            say(f"{size:,} texts are searched exactly all the same: faiss crashes beside torch on macOS")
            return
        from data_prep.mining.ann_index import ApproximateIndex

        say(
            f"{size:,} texts to search, more than {approximate_above:,}: an index finds the candidates approximately, "
            "their scores are exact (--approximate-above)"
        )
        self.index = ApproximateIndex(self._embeddings, size, self.passages.size)
        self.tuned = False

    def rank(self, queries: list[str], banned: "list[np.ndarray]", stop: int) -> list[Ranked]:
        banned = [places[places < self.corpus.candidates] for places in banned]
        asked = self._queries(queries)
        if not self.index:
            return self._exact(asked, banned, stop)
        count = stop + max(map(len, banned))
        if not self.tuned:
            exact = self._exact(asked[:SAMPLED], banned[:SAMPLED], stop)
            self.index.tune(asked[:SAMPLED], [ranked.places for ranked in exact], count)
            self.tuned = True
        return self._approximate(asked, banned, stop, count)

    def _exact(self, queries: "np.ndarray", banned: "list[np.ndarray]", stop: int) -> list[Ranked]:
        import numpy as np

        found, size = [], self.corpus.candidates
        at_once = max(1, SCORES_AT_ONCE // size)
        for start in range(0, len(queries), at_once):
            some = queries[start : start + at_once]
            scores = np.empty((len(some), size), np.float32)
            for first in range(0, size, GATHERED):
                last = min(size, first + GATHERED)
                np.matmul(some, self._embeddings(first, last).T, out=scores[:, first:last])
            found += [_ranked(row, places, stop) for row, places in zip(scores, banned[start:])]
        return found

    def _approximate(self, queries: "np.ndarray", banned: "list[np.ndarray]", stop: int, count: int) -> list[Ranked]:
        import numpy as np

        found = []
        for query, near, places in zip(queries, self.index.search(queries, count), banned):
            ranked = _ranked(self.passages.all[self.rows[near]] @ query, np.flatnonzero(np.isin(near, places)), stop)
            found.append(Ranked(near[ranked.places], ranked.banned))
        return found

    def scores(self, queries: list[str], places: "list[np.ndarray]") -> "list[np.ndarray]":
        import numpy as np

        needed = np.unique(np.concatenate(places)) if places else np.empty(0, np.int64)
        new = needed[self.rows[needed] < 0]
        self.rows[new] = self.passages.rows([self.corpus.texts[i] for i in new])
        return [self.passages.all[self.rows[some]] @ query for query, some in zip(self._queries(queries), places)]

    def _queries(self, texts: Sequence[str]) -> "np.ndarray":
        rows = self.queries.rows(texts)
        self.cut_queries.update(row for row in rows.tolist() if self.queries.truncated[row])
        return self.queries.all[rows]

    def _embeddings(self, first: int, last: int) -> "np.ndarray":
        """Those of the texts at places first … last-1; without a copy where they stand on disk in this order."""
        import numpy as np

        rows = self.rows[first:last]
        start = int(rows[0])
        if np.array_equal(rows, np.arange(start, start + len(rows))):
            return self.passages.all[start : start + len(rows)]
        return self.passages.all[rows]

    def cut(self) -> dict[str, int]:
        import numpy as np

        used = self.rows[self.rows >= 0]
        passages = int(np.frombuffer(self.passages.truncated, bool)[used].sum())
        return {f"of {len(used):,} passages": passages, "queries": len(self.cut_queries)}


def _ranked(scores: "np.ndarray", banned: "np.ndarray", stop: int) -> Ranked:
    """scores: (n,), changed. banned: places that may not be chosen."""
    hit = scores[banned]
    scores[banned] = -float("inf")
    top = best(scores, stop)
    last = scores[top[-1]] if len(top) == stop else -float("inf")
    return Ranked(top, int((hit > last).sum()))
