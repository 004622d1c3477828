"""Metrics of scored pairs: how well the cosines of a model follow the scores. No torch.

- Spearman and Pearson: correlation of cosine and score.
- Labels 0 and 1 also: the area under the ROC curve, and average precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairScores:
    """The cosines of a model beside the scores of the same pairs."""

    cosines: np.ndarray  # (pairs,) float64
    scores: np.ndarray  # (pairs,) float64, in 0..1
    names: tuple[str, ...]  # metrics

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Sequence[int] | np.ndarray) -> "PairScores":
        """Returns some of the pairs; a pair may occur more than once."""
        return PairScores(self.cosines[rows], self.scores[rows], self.names)

    def values(self) -> dict[str, float]:
        """Returns metric -> value; NaN where all scores are equal."""
        return {name: FUNCTIONS[name](self.cosines, self.scores) for name in self.names}


def pearson(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Returns the linear correlation; 0 for cosines that are all equal, NaN for scores that are."""
    one, other = cosines - cosines.mean(), scores - scores.mean()
    if np.ptp(scores) == 0:
        return float("nan")
    if np.ptp(cosines) == 0:
        return 0.0
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def spearman(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Returns the correlation of the ranks (equal values share their mean rank); see pearson."""
    from scipy.stats import rankdata

    return pearson(rankdata(cosines), rankdata(scores))


def auc(cosines: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of (positive, negative) pairs in the right order, ties as half: the area under the ROC curve
    (Hanley and McNeil 1982). NaN without both labels."""
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(cosines)[labels == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(cosines: np.ndarray, labels: np.ndarray) -> float:
    """Returns the sum over thresholds of the gain in recall times precision; equal cosines are one threshold. NaN
    without both labels."""
    positives = labels.sum()
    if positives in (0, len(labels)):
        return float("nan")
    order = np.argsort(-cosines, kind="stable")
    last = np.append(np.flatnonzero(np.diff(cosines[order])), len(order) - 1)  # of the pairs of each threshold
    right = np.cumsum(labels[order])[last]
    return float(np.sum(np.diff(right, prepend=0.0) / positives * right / (last + 1)))


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": spearman,
    "pearson": pearson,
    "auc": auc,
    "average_precision": average_precision,
}
