"""A curve of a metric's gain against the number of pairs, and a forecast from it, with bootstrap intervals. No torch.

- A gain is the change from the model before training, query by query, so that hard and easy queries cancel out.
- The curve: gain(n) = level + slope * (1 - (n / reference) ** -c) / c, which is a - b * n ** -c; at c = 0 it is linear
  in log n. Given the exponent c it is linear in level and slope: least squares have one solution, and no start.
- c lies within EXPONENTS: from growth with n itself (-1), as where few pairs make too few steps to be learnt, to a fast
  end (2). Outside, few points would make curves that explode or stand still beyond them.
- Every replicate draws queries and seeds anew, and takes the exponent that fits it best. Two sizes do not determine
  it: there each replicate draws one, so that the interval covers what is not known about the form.
- The forecast is for a run, not for the mean of many: its interval holds the noise of one run as well.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXPONENTS = np.linspace(-1.0, 2.0, 61)
REPLICATES = 2000
BLOCK = 50  # replicates whose weights of all queries are held at a time
SIDES = 2.5, 97.5  # percentiles of an interval


@dataclass(frozen=True)
class Lines:
    """Fitted curves, one per replicate: (r,) each."""

    reference: float  # pairs
    level: np.ndarray
    slope: np.ndarray  # of the gain by log n, at `reference`
    exponent: np.ndarray

    def at(self, pairs: float) -> np.ndarray:
        """Returns the gain of every curve: (r,)."""
        return self.level + self.slope * _shape(math.log(pairs / self.reference), self.exponent)


@dataclass(frozen=True)
class Forecast:
    """The gain that more pairs are expected to bring."""

    pairs: int  # more of them
    expected: float  # mean over the curves
    low: float  # 95 % interval of one run with so many pairs
    high: float
    price: float | None = None

    @property
    def spans_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Points:
    """Measured gains. pairs: (s, k) of every seed and size; gains: (s, k, q) by query, sizes ascending; base: the mean
    metric before training."""

    pairs: np.ndarray
    gains: np.ndarray
    base: float
    seed: int = 0  # of the bootstrap

    @property
    def sizes(self) -> np.ndarray:
        """Pairs of every size, the mean over its seeds: (k,)."""
        return self.pairs.mean(axis=0)

    @cached_property
    def run_noise(self) -> float:
        """Standard deviation of the gain of runs that differ in their seed only.

        The larger of two estimates: between the means of seeds, of which there are few, and from the spread of single
        queries between two runs, which does not see what moves all queries together. With one seed the second alone,
        between the two largest sizes.
        """
        seeds, queries = self.gains.shape[0], self.gains.shape[2]
        if queries < 2:
            return 0.0
        if seeds == 1:
            return _spread(self.gains[0, -1] - self.gains[0, -2])
        between = math.sqrt(self.gains.mean(axis=2).var(axis=0, ddof=1).mean())
        pairs_of_runs = [self.gains[s + 1] - self.gains[s] for s in range(seeds - 1)]
        spreads = [_spread(difference) ** 2 for runs in pairs_of_runs for difference in runs]
        return max(between, math.sqrt(np.mean(spreads)))

    @cached_property
    def curve(self) -> Lines:
        """The curve of all queries and seeds; of two sizes the one that is linear in log n."""
        exponents = np.zeros(1) if len(self.sizes) == 2 else None
        return fit(self.sizes, self.gains.mean(axis=(0, 2))[None], exponents)

    @cached_property
    def replicates(self) -> Lines:
        """The curves of REPLICATES draws of queries and seeds."""
        rng = np.random.default_rng(self.seed)
        drawn = np.concatenate([self._draw(rng) for _ in range(REPLICATES // BLOCK)])
        exponents = rng.choice(EXPONENTS, len(drawn)) if len(self.sizes) == 2 else None
        return fit(self.sizes, drawn, exponents)

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the mean gains of BLOCK draws: (r, k)."""
        seeds, sizes, queries = self.gains.shape
        weights = rng.multinomial(queries, np.full(queries, 1 / queries), size=BLOCK) / queries
        means = np.einsum("rq,skq->rsk", weights, self.gains)
        whole = means.mean(axis=1)
        if seeds == 1:
            return whole
        chosen = rng.integers(seeds, size=(BLOCK, seeds, sizes))  # of each size by itself: runs differ by chance
        drawn = np.take_along_axis(means, chosen, axis=1).mean(axis=1)
        return whole + (drawn - whole) * math.sqrt(seeds / (seeds - 1))  # few draws vary too little

    def interval(self, pairs: float) -> tuple[float, float, float]:
        """Returns the curve's gain at a number of pairs, and its 95 % interval."""
        drawn = self._within(self.replicates.at(pairs))
        low, high = np.percentile(drawn, SIDES)
        return float(drawn.mean()), float(low), float(high)

    def forecast(self, more: int, price_per_pair: float | None = None) -> Forecast:
        """Returns what `more` pairs bring beside those of the largest size."""
        now = float(self.sizes[-1])
        change = self._within(self.replicates.at(now + more)) - self._within(self.replicates.at(now))
        noise = np.random.default_rng([self.seed, 1]).normal(0.0, self.run_noise, len(change))
        low, high = np.percentile(change + noise, SIDES)
        price = None if price_per_pair is None else price_per_pair * more
        return Forecast(more, float(change.mean()), float(low), float(high), price)

    def _within(self, gains: np.ndarray) -> np.ndarray:
        """Returns the gains of metrics that lie in 0..1, as all watched ones do."""
        return np.clip(gains, -self.base, 1.0 - self.base)


def fit(pairs: np.ndarray, gains: np.ndarray, exponents: np.ndarray | None = None) -> Lines:
    """Fits a curve to each row of gains by least squares. pairs: (k,), gains: (r, k). exponents: (r,) of the curves;
    None: of EXPONENTS the one that fits best."""
    reference = math.exp(np.log(pairs).mean())
    logs = np.log(pairs / reference)
    if exponents is not None:
        shapes = _shape(logs, exponents[:, None])  # (r, k)
        return Lines(reference, *_least_squares(shapes, gains)[:2], exponents)
    tried = [_least_squares(np.broadcast_to(_shape(logs, np.array(c)), gains.shape), gains) for c in EXPONENTS]
    level, slope, squares = (np.stack(each) for each in zip(*tried))  # (c, r)
    best = squares.argmin(axis=0), np.arange(len(gains))
    return Lines(reference, level[best], slope[best], EXPONENTS[best[0]])


def _shape(logs: np.ndarray | float, exponents: np.ndarray) -> np.ndarray:
    """Returns (1 - exp(-c * log)) / c, and its limit, the log itself, at c = 0."""
    near = np.abs(exponents) < 1e-9
    return np.where(near, logs, -np.expm1(-exponents * logs) / np.where(near, 1.0, exponents))


def _least_squares(shapes: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns level, slope and the sum of squares of each row: (r,)."""
    x, y = shapes.mean(axis=1), gains.mean(axis=1)
    apart = shapes - x[:, None]
    slope = (apart * gains).sum(axis=1) / (apart**2).sum(axis=1)
    level = y - slope * x
    rest = gains - level[:, None] - slope[:, None] * shapes
    return level, slope, (rest**2).sum(axis=1)


def _spread(difference: np.ndarray) -> float:
    """Returns the standard deviation of one of two runs, from their difference on single queries."""
    return math.sqrt(float(difference.var(ddof=1)) / (2 * len(difference)))
