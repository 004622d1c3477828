"""The global batch plan: which rows every optimizer step trains on. A pure function; knows nothing of ranks. No torch.

The plan depends on (data fingerprint, seed, epoch, batch_size, last_batch, PLAN_VERSION) and on nothing else, so every
topology and every resumed run sees the same global batches.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

PLAN_VERSION = 1


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of one data set. rows: number of rows; batch_size: rows per optimizer step over all ranks."""

    rows: int
    batch_size: int
    fingerprint: str
    seed: int
    last_batch: str = "keep"  # "drop" leaves out an incomplete last batch; nothing is ever padded with repeats

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

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches, each an int64 array of row ids; batch i is optimizer step i of the epoch."""
        order = self._rng(epoch).permutation(self.rows)
        cuts = range(0, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in cuts]


def rank_slice(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The rows of a global batch that one rank embeds: contiguous, sizes differ by at most one."""
    return np.array_split(batch, world)[rank]


def total_steps(plan: BatchPlan, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole run."""
    planned = plan.steps_per_epoch * epochs
    return min(planned, max_steps or planned)
