"""Means over queries, and two models compared on the same queries or pairs. No torch."""

from collections.abc import Hashable, Sequence

import numpy as np

from trainer.evaluation.pair_metrics import PairScores

PerQuery = dict[str, dict[str, float]]  # query id -> metric -> value
Scores = PerQuery | PairScores
NUMBERS = 1_000_000  # of resampled values that are held at a time
PAIR_SAMPLES = 2_000  # resamples of scored pairs: each ranks all of them again


def means(scores: Scores) -> dict[str, float]:
    """Returns metric -> mean over the queries, or the value over the pairs."""
    if isinstance(scores, PairScores):
        return scores.values()
    names = next(iter(scores.values()))
    return {name: float(np.mean([values[name] for values in scores.values()])) for name in names}


def part_of(scores: Scores, members: Sequence[Hashable]) -> Scores:
    """Returns the scores of some queries (by id) or pairs (by number)."""
    if isinstance(scores, PairScores):
        return scores.take(np.asarray(members))
    return {query: scores[query] for query in members}


def compare(before: Scores, after: Scores) -> dict[str, dict]:
    """Returns metric -> base, tuned, difference and its 95 % interval over the same queries, or pairs whose scores
    are not all equal."""
    base, tuned = means(before), means(after)
    if isinstance(before, PairScores):
        intervals = _of_pairs(before, after)
    else:
        sides = [np.array([[side[query][name] for name in base] for query in before]) for side in (before, after)]
        intervals = [list(limits) for limits in zip(*paired_bootstrap(*sides))]
    return {
        name: {
            "base": base[name],
            "tuned": tuned[name],
            "difference": tuned[name] - base[name],
            "interval_95": interval,
        }
        for name, interval in zip(base, intervals)
    }


def paired_bootstrap(before: np.ndarray, after: np.ndarray, samples: int = 10_000, seed: int = 0) -> tuple:
    """Returns the 95 % interval of the mean difference over resampled queries (Efron 1979, percentile method).

    before, after: (queries,), or (queries, metrics) for a list of every metric's lower limits and one of the upper.
    """
    # scipy.stats.bootstrap draws the same samples, but rounds its quantiles otherwise: the last digits would change
    difference = np.asarray(after) - np.asarray(before)
    rng = np.random.default_rng(seed)
    draws = np.empty((samples, *difference.shape[1:]))
    block = max(1, NUMBERS // difference.size)  # resamples at a time: the same draws, without a loop over each
    for start in range(0, samples, block):
        rows = rng.integers(0, len(difference), (min(block, samples - start), len(difference)))
        draws[start : start + block] = difference[rows].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()


def _of_pairs(before: PairScores, after: PairScores) -> list[list[float]]:
    """Returns the interval of every metric's difference over resampled pairs; a resample whose scores are all equal
    has no metric and does not count."""
    rng = np.random.default_rng(0)
    draws = np.full((PAIR_SAMPLES, len(before.names)), np.nan)
    for draw in draws:
        rows = rng.integers(0, len(before), len(before))
        base, tuned = before.take(rows).values(), after.take(rows).values()
        draw[:] = [tuned[name] - base[name] for name in before.names]
    counted = draws[~np.isnan(draws).any(axis=1)]
    return [[float(low), float(high)] for low, high in np.percentile(counted, [2.5, 97.5], axis=0).T]
