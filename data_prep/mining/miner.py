"""Hard negatives: texts that rank high for a query and are no positive of it.

A candidate may be a positive that nobody labelled. Such candidates are skipped by rank and by score: above the
positive's score less a margin, absolute or relative (NV-Retriever, arXiv:2407.15831: TopK-MarginPos, TopK-PercPos).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Protocol

import numpy as np

from data_prep.common.console import say, track
from data_prep.common.errors import BadInput
from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus, same_answer
from data_prep.mining.choice import DEPTH, Choice
from data_prep.mining.ranker import Ranker
from data_prep.mining.vector_cache import VectorCache
from data_prep.records import Record


class PairScorer(Protocol):
    """A cross-encoder, as mining sees it."""

    digest: str  # of everything that changes a score
    max_len: int  # tokens of a pair

    def scores(self, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores of (query, text) pairs, (n, 1) float32, and (n,) bool: the pair was truncated."""


@dataclass
class Counts:
    """Rows, and the candidates that were rejected until each row had its k negatives."""

    rows: int = 0
    graded: int = 0  # rows with a score: unchanged, because their text may be no positive
    mined: int = 0  # negatives
    fewer: int = 0  # rows that got fewer than k
    none: int = 0  # rows that got none
    forbidden: int = 0  # candidates that the row must not have
    skipped: int = 0  # candidates of ranks below Choice.first
    same: int = 0  # candidates that contain a positive or are part of one
    margin: int = 0  # candidates above the margin
    cut_pairs: set[int] = field(default_factory=set)  # truncated pairs, as rows of the cache


class Miner:
    """Adds hard negatives to rows, a few at a time.

    rankers: one, or two whose candidates alternate; margins apply to the scores of the last one. pairs: the scores of a
    cross-encoder, on disk; if given, they order the candidates, apply to margins and become teacher_scores.
    """

    def __init__(self, corpus: Corpus, choice: Choice, rankers: list[Ranker], pairs: VectorCache | None = None):
        self.corpus, self.choice, self.rankers, self.pairs = corpus, choice, rankers, pairs
        self.counts = Counts()

    def add(self, records: list[Record]) -> None:
        """Appends to the negatives of each record; records with a graded score stay unchanged."""
        self.counts.graded += sum(record.score is not None for record in records)
        records = [record for record in records if record.score is None]
        if not records:
            return
        candidates = self._candidates(records)
        known_scores, scores = self._scores(records, candidates)
        for i, record in enumerate(records):
            chosen = self._chosen(record, candidates[i], known_scores[i], scores[i])
            record.negatives += [self.corpus.texts[candidates[i][at]] for at in chosen]
            if self.pairs is not None:
                record.teacher_scores = [float(score) for score in chain(known_scores[i], scores[i][chosen])]
            self.counts.rows += 1
            self.counts.mined += len(chosen)
            self.counts.fewer += len(chosen) < self.choice.k
            self.counts.none += not chosen

    def _candidates(self, records: list[Record]) -> list[np.ndarray]:
        """Returns the candidates of each record, as numbers of corpus texts, best first."""
        queries = [record.query for record in records]
        banned = [self.corpus.forbidden(record) for record in records]
        windows: list[list[list[int]]] = [[] for _ in records]
        skipped: list[set[int]] = [set() for _ in records]
        for ranker in self.rankers:
            for i, ranked in enumerate(ranker.rank(queries, banned, self.choice.stop)):
                self.counts.forbidden += ranked.banned
                skipped[i].update(ranked.places[: self.choice.first].tolist())
                windows[i].append(ranked.places[self.choice.first :].tolist())
        candidates = []
        for window, best in zip(windows, skipped):
            self.counts.skipped += len(best)
            turns = dict.fromkeys(number for turn in zip_longest(*window) for number in turn if number is not None)
            candidates.append(np.array([number for number in turns if number not in best], np.int64))
        return candidates

    def _scores(self, records: list[Record], candidates: list[np.ndarray]):
        """Returns for each record the scores of its known texts and of its candidates; empty if nothing needs them.

        Known texts are its positives, followed for a cross-encoder by the negatives that it has.
        """
        if self.pairs is None and not self.choice.has_margin:
            return [[]] * len(records), [[]] * len(records)
        queries = [record.query for record in records]
        if self.pairs is None:
            positives = [np.array(self.corpus.places(record.positives)) for record in records]
            scores = self.rankers[-1].scores(queries, [np.concatenate(pair) for pair in zip(positives, candidates)])
            sizes = [len(places) for places in positives]
        else:
            known = [[*record.positives, *record.negatives] for record in records]
            texts = [[*positives, *(self.corpus.texts[i] for i in some)] for positives, some in zip(known, candidates)]
            rows = self.pairs.rows([(query, text) for query, some in zip(queries, texts) for text in some])
            self.counts.cut_pairs.update(row for row in rows.tolist() if self.pairs.truncated[row])
            flat = self.pairs.all[rows, 0]
            scores = np.split(flat, np.cumsum([len(some) for some in texts])[:-1])
            sizes = [len(positives) for positives in known]
        return [s[:n] for s, n in zip(scores, sizes)], [s[n:] for s, n in zip(scores, sizes)]

    def _chosen(self, record: Record, candidates, known, scores) -> list[int]:
        """Picks the negatives of a record: indices into its candidates, in order."""
        order = range(len(candidates))
        if self.pairs is not None:
            order = sorted(order, key=lambda at: -scores[at])
        limit = self.choice.limit(known[: len(record.positives)]) if self.choice.has_margin else float("inf")

        def usable() -> Iterator[int]:
            for at in order:
                if same_answer(self.corpus.texts[candidates[at]], record.positives):
                    self.counts.same += 1
                elif self.choice.has_margin and scores[at] > limit:
                    self.counts.margin += 1
                else:
                    yield at

        return self.choice.sample(usable(), json.dumps([record.id, record.query, record.positives]))

    def notes(self) -> list[str]:
        """Summary lines for the end of the run."""
        counts, k = self.counts, self.choice.k
        dropped = {
            "that the row must not have (positives of an equal query, texts of the same document …)": counts.forbidden,
            "by skip": counts.skipped,
            "above the margin": counts.margin,
            "that hold a positive or are part of one": counts.same,
        }
        reasons = [f"{count:,} {why}" for why, count in dropped.items() if count]
        lines = [f"candidates left out: {', '.join(reasons)}"] if reasons else []
        if counts.graded:
            lines.append(f"{counts.graded:,} rows with a score get no hard negatives")
        if counts.fewer:
            by_words = [ranker.name for ranker in self.rankers] == ["BM25"]
            why = "no more texts share a word" if by_words else "no more candidates are left"
            rows = f"{counts.fewer:,} of {counts.rows:,} rows got fewer than {k} hard negatives"
            lines.append(f"{rows}, {counts.none:,} of them none: {why}")
        return lines


def add_hard_negatives(records: list[Record], k: int, where: str) -> None:
    """Appends to each row up to k positives of other rows, best BM25 score first, in place.

    A candidate shares a word with the query, so a row may get fewer than k; a message gives the count. records: all
    rows of one input. where: the input's name for messages. Rows with a graded `score` stay unchanged. BadInput: rows
    with `teacher_scores`, whose new texts would have none.
    """
    if scored := sum(record.teacher_scores is not None for record in records):
        mend = "leave it out for this input"
        raise BadInput(f"{where}: --hard-k cannot add to {scored:,} rows with teacher_scores; {mend}")
    corpus = Corpus()
    for record in records:
        corpus.add_row(record, choose=True)
    corpus.seal()
    miner = Miner(corpus, Choice(k, stop=max(DEPTH, 2 * k)), [Bm25(corpus)])
    for record in track(records, f"{where}: BM25", total=len(records)):
        miner.add([record])
    for note in miner.notes():
        say(f"{where}: {note}")
