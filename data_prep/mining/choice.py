"""The rule that picks negatives from a ranking. Imports nothing slow, so that --help answers at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

METHODS = ("bm25", "dense", "both")
SAMPLINGS = ("top", "random", "spread")
DEPTH = 100  # candidates of a row, after the skipped ones
EXACT_UP_TO = 200_000  # candidates: default for exact search


@dataclass(frozen=True)
class Choice:
    """The part of a ranking that becomes negatives: k candidates of ranks first … stop-1 below the limit.

    Rank 0 is the best candidate; a text that may never be a negative has no rank.
    """

    k: int = 2  # negatives per row
    first: int = 0
    stop: int = DEPTH
    sampling: str = "top"  # which k of them, see sample()
    margin: float | None = None  # the limit: lowest score of the row's positives less this
    relative_margin: float | None = None  # and less this share of its absolute value; 0.05: 95 % of a positive score

    def problems(self) -> list[str]:
        """Lists the contradictions, by flag."""
        problems = []
        if self.k < 1:
            problems.append(f"--k {self.k}: must be 1 or more")
        if not 0 <= self.first < self.stop:
            problems.append(f"--range {self.first}:{self.stop}: must be A:B with 0 <= A < B")
        elif self.k > self.stop - self.first:
            problems.append(f"--k {self.k}: more than the {self.stop - self.first} candidates of --range; widen it")
        if self.margin is not None and not self.margin >= 0:
            problems.append(f"--margin {self.margin}: must be 0 or more")
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            problems.append(f"--relative-margin {self.relative_margin}: must be 0 or more and below 1 (0.05: 95 %)")
        return problems

    @property
    def has_margin(self) -> bool:
        return self.margin is not None or self.relative_margin is not None

    def sample(self, usable: Iterable[Any], row: str) -> list[Any]:
        """Returns k of the usable candidates, which come best first, in that order. row: what identifies the row.

        top: the best, and no further one is looked at. random: a draw that `row` seeds, so that neither order nor
        number of rows matter. spread: the candidates in k equal parts, of each part the best.
        """
        if self.sampling == "top":
            return list(islice(usable, self.k))
        usable = list(usable)
        count, k = len(usable), min(self.k, len(usable))
        if self.sampling == "spread":
            return [usable[i * count // k] for i in range(k)]
        return [usable[i] for i in sorted(Random(row).sample(range(count), k))]

    def limit(self, positives: Any) -> float:
        """Highest score that a negative may have. positives: (n,) scores of the row's positives."""
        lowest = float(positives.min())
        return min(lowest - (self.margin or 0.0), lowest - (self.relative_margin or 0.0) * abs(lowest))
