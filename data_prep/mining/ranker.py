"""The interface of a ranker, which orders the texts of a corpus for a query."""

from typing import NamedTuple, Protocol

import numpy as np


class Ranked(NamedTuple):
    """The best texts of a corpus for one query."""

    places: np.ndarray  # (n,) int64 numbers of texts, best first
    banned: int  # texts that may not be chosen and ranked among them


class Ranker(Protocol):
    """A way to rank the texts of a corpus."""

    name: str

    def rank(self, queries: list[str], banned: list[np.ndarray], stop: int) -> list[Ranked]:
        """Returns for each query its `stop` best candidates. banned: for each query the numbers to skip."""

    def scores(self, queries: list[str], places: list[np.ndarray]) -> list[np.ndarray]:
        """Returns for each query the scores of the texts with these numbers, float32."""

    def cut(self) -> dict[str, int]:
        """Counts the truncated texts, by kind."""


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of (n,) scores, highest first, ties by index; -inf is never returned."""
    if count < len(scores):
        at = np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])
    else:
        at = np.arange(len(scores))
    at = at[scores[at] > -np.inf]
    return at[np.lexsort((at, -scores[at]))[:count]]
