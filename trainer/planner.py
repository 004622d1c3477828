"""The global batch plan: which rows every optimizer step trains on. A pure function; knows nothing of ranks. No torch.

The plan depends on (data fingerprint, seed, epoch, batch_size, last_batch, PLAN_VERSION) and on nothing else, so every
topology and every resumed run sees the same global batches. No two rows of a batch share a query, a positive or a
document: such rows would be each other's false negatives. Where a text occurs more often than there are batches that
cannot be; those rows are counted, and the loss masks them.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

PLAN_VERSION = 1
ROUNDS = 200  # of moving conflicting rows; what is left then is masked


@dataclass(frozen=True)
class RowKeys:
    """Keys of every row's texts and documents: keys[ends[i - 1]:ends[i]] are those of row i, int64."""

    keys: np.ndarray
    ends: np.ndarray

    @cached_property
    def shared(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, key number) of every key that stands in more than one row; usually few."""
        _, number, counts = np.unique(self.keys, return_inverse=True, return_counts=True)
        places = np.flatnonzero(counts[number] > 1)
        return np.searchsorted(self.ends, places, side="right"), number[places]


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of one data set. rows: number of rows; batch_size: rows per optimizer step over all ranks."""

    rows: int
    batch_size: int
    fingerprint: str
    seed: int
    last_batch: str = "keep"  # "drop" leaves out an incomplete last batch; nothing is ever padded with repeats
    keys: RowKeys | None = field(default=None, compare=False, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.rows, self.batch_size)
        return full + (1 if rest >= 2 and self.last_batch == "keep" else 0)

    @property
    def left_out_per_epoch(self) -> int:
        """Rows no batch of an epoch holds: a dropped last batch, or a single last row (it would have no negative)."""
        rest = self.rows % self.batch_size
        return rest if rest and (self.last_batch == "drop" or rest < 2) else 0

    def _rng(self, epoch: int) -> np.random.Generator:
        text = f"{PLAN_VERSION}|{self.fingerprint}|{self.seed}|{epoch}|{self.rows}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))

    def arrange(self, epoch: int) -> tuple[np.ndarray, int]:
        """The epoch's order of all rows, and how many rows still meet one they share a text or document with."""
        rng = self._rng(epoch)
        order = rng.permutation(self.rows)
        if self.keys is None:
            return order, 0
        return spread(order, self.batch_size, *self.keys.shared, rng)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches, each an int64 array of row ids; batch i is optimizer step i of the epoch."""
        order, _ = self.arrange(epoch)
        cuts = range(0, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in cuts]


def spread(
    order: np.ndarray, batch_size: int, rows: np.ndarray, numbers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Moves rows of an order until no batch holds a shared key twice, or ROUNDS are over.

    order: (n,) row ids; batches are runs of batch_size. rows, numbers: (m,) each, RowKeys.shared. Every row that meets
    a key again in its batch swaps places with a random row; each round costs O(m log m), whatever n is. Returns the
    order and the number of rows that still meet one of their keys (0 unless keys are about as frequent as batches).
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    span = int(numbers.max(initial=0)) + 1
    movers = rows[:0]
    for _ in range(ROUNDS):
        code = place[rows] // batch_size * span + numbers
        by_code = np.argsort(code, kind="stable")
        again = code[by_code][1:] == code[by_code][:-1]
        movers = np.unique(rows[by_code[1:][again]])
        if not len(movers):
            break
        targets = rng.choice(len(order), size=len(movers), replace=False)
        free = ~np.isin(order[targets], movers)  # two movers would only trade their troubles
        _swap(order, place, place[movers[free]], targets[free])
    return order, len(movers)


def _swap(order: np.ndarray, place: np.ndarray, some: np.ndarray, others: np.ndarray) -> None:
    """Exchanges the rows at two lists of places (all distinct), in place."""
    order[some], order[others] = order[others], order[some]
    place[order[some]], place[order[others]] = some, others


def rank_slice(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The rows of a global batch that one rank embeds: contiguous, sizes differ by at most one."""
    return np.array_split(batch, world)[rank]


def total_steps(plan: BatchPlan, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole run."""
    planned = plan.steps_per_epoch * epochs
    return min(planned, max_steps or planned)
