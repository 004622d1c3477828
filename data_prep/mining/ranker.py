"""What the ways to rank texts share."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np


class Ranked(NamedTuple):
    """places: (n,) int64 in a corpus, best first. banned: how many texts that may not be chosen ranked among them."""

    places: "np.ndarray"
    banned: int


class Ranker(Protocol):
    """A way to rank the texts of a corpus."""

    name: str

    def rank(self, queries: list[str], banned: "list[np.ndarray]", stop: int) -> list[Ranked]:
        """For each query the `stop` best texts that may be chosen and are not among its banned places."""

    def scores(self, queries: list[str], places: "list[np.ndarray]") -> "list[np.ndarray]":
        """For each query the scores of the texts at these places, float32."""

    def cut(self) -> dict[str, int]:
        """How many texts were longer than what is read of them, by what they are."""


def best(scores: "np.ndarray", count: int) -> "np.ndarray":
    """Places of the `count` highest of (n,) scores, highest first, equal ones by place; -inf stands for none."""
    import numpy as np

    if count < len(scores):
        at = np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])
    else:
        at = np.arange(len(scores))
    at = at[scores[at] > -np.inf]
    return at[np.lexsort((at, -scores[at]))[:count]]
