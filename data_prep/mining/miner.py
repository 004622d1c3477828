"""Hard negatives: texts that rank high for a query and are no positive of it.

What may be a positive that the data do not know of is left out by rank, and by score: a candidate above the positive's
score less a margin, absolute or relative (NV-Retriever, arXiv:2407.15831: TopK-MarginPos and TopK-PercPos).
"""

from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Protocol

from data_prep.common.console import say, track
from data_prep.common.errors import BadInput
from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus, same_answer
from data_prep.mining.ranker import Ranker
from data_prep.mining.vector_cache import VectorCache
from data_prep.records import Record

if TYPE_CHECKING:
    import numpy as np

METHODS = ("bm25", "dense", "both")
DEPTH = 100  # candidates of a row, after those skipped


@dataclass(frozen=True)
class Choice:
    """What is taken of a ranking. k: negatives per row. Of the candidates of ranks first … stop-1 (0 is the best, what
    may never be a negative has no rank) the first k stay whose score is at most the row's lowest positive's less
    `margin`, and at most it less `relative_margin` of its absolute value (0.05: 95 % of a positive score)."""

    k: int = 2
    first: int = 0
    stop: int = DEPTH
    margin: float | None = None
    relative_margin: float | None = None

    def problems(self) -> list[str]:
        found = []
        if self.k < 1:
            found.append(f"--k {self.k}: must be 1 or more")
        if not 0 <= self.first < self.stop:
            found.append(f"--range {self.first}:{self.stop}: must be A:B with 0 <= A < B")
        elif self.k > self.stop - self.first:
            found.append(f"--k {self.k}: more than the {self.stop - self.first} candidates of --range; widen it")
        if self.margin is not None and not self.margin >= 0:
            found.append(f"--margin {self.margin}: must be 0 or more")
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            found.append(f"--relative-margin {self.relative_margin}: must be 0 or more and below 1 (0.05: 95 %)")
        return found

    @property
    def has_margin(self) -> bool:
        return self.margin is not None or self.relative_margin is not None

    def limit(self, positives: "np.ndarray") -> float:
        """The highest score a negative may have, by the scores of the row's positives."""
        lowest = float(positives.min())
        return min(lowest - (self.margin or 0.0), lowest - (self.relative_margin or 0.0) * abs(lowest))


class PairScorer(Protocol):
    """A cross-encoder, as mining sees it. digest: of everything that changes a score. max_len: tokens of a pair."""

    digest: str
    max_len: int

    def scores(self, pairs: list[tuple[str, str]]) -> "tuple[np.ndarray, np.ndarray]":
        """(n, 1) float32 scores of (query, text), and (n,) bool: whether the pair was cut."""


@dataclass
class Counts:
    """What became of the rows, and of their candidates until each had its k negatives."""

    rows: int = 0
    graded: int = 0  # rows with a score: left alone, as their text need not be a positive
    mined: int = 0
    fewer: int = 0  # rows that got fewer than k
    none: int = 0
    forbidden: int = 0
    skipped: int = 0
    same: int = 0
    margin: int = 0
    cut_pairs: set[int] = field(default_factory=set)  # rows of the cache


class Miner:
    """Adds hard negatives to rows, a few at a time.

    rankers: one, or two whose candidates are taken in turns; the last one's scores decide about margins. pairs: a
    cross-encoder's scores on disk; they decide instead, the highest come first, and they become teacher_scores.
    """

    def __init__(self, corpus: Corpus, choice: Choice, rankers: list[Ranker], pairs: VectorCache | None = None):
        self.corpus, self.choice, self.rankers, self.pairs = corpus, choice, rankers, pairs
        self.counts = Counts()

    def add(self, records: list[Record]) -> None:
        """Appends to the negatives of each record; those with a graded score stay as they are."""
        self.counts.graded += sum(record.score is not None for record in records)
        records = [record for record in records if record.score is None]
        if not records:
            return
        candidates = self._candidates(records)
        known, scores = self._scores(records, candidates)
        for i, record in enumerate(records):
            chosen = self._chosen(record, candidates[i], known[i], scores[i])
            record.negatives += [self.corpus.texts[candidates[i][at]] for at in chosen]
            if self.pairs is not None:
                record.teacher_scores = [float(score) for score in chain(known[i], scores[i][chosen])]
            self.counts.rows += 1
            self.counts.mined += len(chosen)
            self.counts.fewer += len(chosen) < self.choice.k
            self.counts.none += not chosen

    def _candidates(self, records: list[Record]) -> "list[np.ndarray]":
        """For each record the places of the candidates of its ranks."""
        import numpy as np

        queries = [record.query for record in records]
        banned = [self.corpus.forbidden(record) for record in records]
        windows: list[list[list[int]]] = [[] for _ in records]
        skipped: list[set[int]] = [set() for _ in records]
        for ranker in self.rankers:
            for i, ranked in enumerate(ranker.rank(queries, banned, self.choice.stop)):
                self.counts.forbidden += ranked.banned
                skipped[i].update(ranked.places[: self.choice.first].tolist())
                windows[i].append(ranked.places[self.choice.first :].tolist())
        found = []
        for window, left_out in zip(windows, skipped):
            self.counts.skipped += len(left_out)
            turns = dict.fromkeys(place for turn in zip_longest(*window) for place in turn if place is not None)
            found.append(np.array([place for place in turns if place not in left_out], np.int64))
        return found

    def _scores(self, records: list[Record], candidates: "list[np.ndarray]"):
        """For each record the scores of its positives (a cross-encoder: then of the negatives it has), and of its
        candidates; empty ones where nothing asks for scores."""
        import numpy as np

        if self.pairs is None and not self.choice.has_margin:
            return [[]] * len(records), [[]] * len(records)
        queries = [record.query for record in records]
        if self.pairs is None:
            own = [np.array(self.corpus.places(record.positives)) for record in records]
            both = self.rankers[-1].scores(queries, [np.concatenate(pair) for pair in zip(own, candidates)])
            sizes = [len(places) for places in own]
        else:
            known = [[*record.positives, *record.negatives] for record in records]
            texts = [[*own, *(self.corpus.texts[i] for i in some)] for own, some in zip(known, candidates)]
            rows = self.pairs.rows([(query, text) for query, some in zip(queries, texts) for text in some])
            self.counts.cut_pairs.update(row for row in rows.tolist() if self.pairs.truncated[row])
            flat = self.pairs.all[rows, 0]
            both = np.split(flat, np.cumsum([len(some) for some in texts])[:-1])
            sizes = [len(own) for own in known]
        return [s[:n] for s, n in zip(both, sizes)], [s[n:] for s, n in zip(both, sizes)]

    def _chosen(self, record: Record, candidates, known, scores) -> list[int]:
        """Which of a record's candidates become negatives, in their order."""
        order = range(len(candidates))
        if self.pairs is not None:
            order = sorted(order, key=lambda at: -scores[at])
        limit = self.choice.limit(known[: len(record.positives)]) if self.choice.has_margin else float("inf")
        chosen = []
        for at in order:
            if same_answer(self.corpus.texts[candidates[at]], record.positives):
                self.counts.same += 1
            elif self.choice.has_margin and scores[at] > limit:
                self.counts.margin += 1
            elif len(chosen) < self.choice.k:
                chosen.append(at)
            else:
                break
        return chosen

    def notes(self) -> list[str]:
        """Lines to say when the work is done."""
        counts, k = self.counts, self.choice.k
        dropped = {
            "that the row must not have (positives of an equal query, texts of the same document …)": counts.forbidden,
            "by skip": counts.skipped,
            "above the margin": counts.margin,
            "that hold a positive or are part of one": counts.same,
        }
        told = [f"{count:,} {why}" for why, count in dropped.items() if count]
        found = [f"left out: candidates {', '.join(told)}"] if told else []
        if counts.graded:
            found.append(f"{counts.graded:,} rows with a score get no hard negatives")
        if counts.fewer:
            by_words = [ranker.name for ranker in self.rankers] == ["BM25"]
            why = "no more texts share a word" if by_words else "no more candidates are left"
            rows = f"{counts.fewer:,} of {counts.rows:,} rows got fewer than {k} hard negatives"
            found.append(f"{rows}, {counts.none:,} of them none: {why}")
        return found


def add_hard_negatives(records: list[Record], k: int, where: str) -> None:
    """Appends to each row up to k positives of other rows, best BM25 score first. Only texts that share a word with the
    query count: a row may get fewer, which is said.

    records: all rows of one input, changed in place. where: the input's name for messages. Rows with a graded `score`
    are left alone; rows with `teacher_scores` would get unscored texts: BadInput.
    """
    if taught := sum(record.teacher_scores is not None for record in records):
        raise BadInput(
            f"{where}: --hard-k cannot add to {taught:,} rows with teacher_scores; leave it out for this input"
        )
    corpus = Corpus()
    for record in records:
        corpus.add_row(record, choose=True)
    corpus.seal()
    miner = Miner(corpus, Choice(k, stop=max(DEPTH, 2 * k)), [Bm25(corpus)])
    for record in track(records, f"{where}: BM25", total=len(records)):
        miner.add([record])
    for note in miner.notes():
        say(f"{where}: {note}")
