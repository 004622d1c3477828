"""The global batch plan: the rows of every optimizer step. A pure function, independent of ranks. No torch.

- The plan depends on (data fingerprint, seed, batch_size, last_batch, mixing, PLAN_VERSION) alone, so every topology
  and every resumed run sees the same global batches.
- A batch has rows of one source, and no two that share a query, a positive or a document. Where a text occurs more
  often than there are batches, the rows that meet are counted, and the loss masks them.
- Any step is reached at once: the order of a pass is a keyed permutation (permutation.py) and the few rows that were
  moved away from each other (source_pass.py). A rank's memory does not grow with the rows.
- There is no plan file to build, ship or wait for. The price is hashing for every batch, and an examination of all
  pairs of (row, shared key) at the start of every pass.
"""

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from data_prep.shards.shared_keys import SourceRows
from trainer.planner.permutation import Permutation
from trainer.planner.row_negatives import drawn_negatives
from trainer.planner.source_pass import Pass

PLAN_VERSION = 2
CACHED_PASSES = 64  # per source at most; only a source that repeats within an epoch has more than two


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of the sources of one data set.

    Each source is an endless stream of batches, pass after pass over its rows, each pass in another order. `mixing`
    chooses the stream of a step. An epoch has as many steps as one pass over every source has batches.
    proportional: an epoch is one pass over every source, in random order: every row once. temperature: an epoch takes
    batches of each source in proportion to rows ** (1 / mixing_temperature), at least one (Arivazhagan et al. 2019,
    arXiv:1907.05019), in random order. round_robin: the sources take turns.
    """

    parts: tuple[SourceRows, ...]  # rows of each source
    batch_size: int  # rows per optimizer step over all ranks
    fingerprint: str
    seed: int
    last_batch: str = "keep"  # "drop" omits the incomplete last batch of a pass; no row is repeated to fill it
    mixing: str = "proportional"
    mixing_temperature: float = 2.0
    apart: frozenset[str] | None = None  # sources whose rows are kept apart where they share a key; None: all
    cut: int | None = None  # steps after which an epoch of the run ends early; the next one continues there
    max_hard_negatives: int | None = None  # that a row trains on in an epoch; None: all
    negative_sampling: str = "first"  # the choice of these, see row_negatives.py
    _passes: dict[tuple[int, int], Pass] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        assert self.parts and all(self._batches), "a source without a batch"

    @property
    def sources(self) -> list[tuple[str, int]]:
        """(name, rows) of every source."""
        return [(part.name, len(part.rows)) for part in self.parts]

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.sources)

    @cached_property
    def _batches(self) -> list[int]:
        """Batches of a pass over each source."""
        return [batches_of(rows, self.batch_size, self.last_batch) for _, rows in self.sources]

    @cached_property
    def steps_per_epoch(self) -> int:
        return sum(self._batches)

    @property
    def epoch_steps(self) -> int:
        """Steps from one evaluation and checkpoint to the next: a whole pass, or what `cut` leaves of it."""
        return min(self.steps_per_epoch, self.cut or self.steps_per_epoch)

    @property
    def left_out_per_epoch(self) -> int:
        """Rows that a pass omits, others each time: a dropped last batch, or a single last row without negatives."""
        return sum(max(0, rows - n * self.batch_size) for (_, rows), n in zip(self.sources, self._batches))

    @property
    def last_batches(self) -> list[int]:
        """Rows of the last batch of a pass over each source."""
        size = self.batch_size
        return [min(rows - (n - 1) * size, size) for (_, rows), n in zip(self.sources, self._batches)]

    @cached_property
    def quotas(self) -> list[int]:
        """Batches that an epoch takes from each source (round_robin: equal quotas up to one, see _taken)."""
        if self.mixing == "temperature":
            weights = [rows ** (1 / self.mixing_temperature) for _, rows in self.sources]
            return shares(self.steps_per_epoch, weights)
        return self._batches

    def describe_sources(self) -> str:
        """One line for people."""
        return f"sources: {', '.join(f'{name} {rows:,} rows' for name, rows in self.sources)}; mixing {self.mixing}"

    def batch(self, step: int) -> tuple[str, np.ndarray]:
        """(source, its row ids as int64) of the global batch of a step counted from the start of the whole run."""
        if self.mixing == "round_robin":
            turn, source = divmod(step, len(self.parts))
        else:
            epoch, position = divmod(step, self.steps_per_epoch)
            slot = int(Permutation(self.steps_per_epoch, self._key("epoch", epoch)).at(np.array([position]))[0])
            ends = list(accumulate(self.quotas))
            source = bisect_right(ends, slot)
            turn = self._taken(source, epoch).start + slot - ends[source] + self.quotas[source]
        number, batch = divmod(turn, self._batches[source])
        oldest = self._taken(source, step // self.steps_per_epoch).start // self._batches[source]
        return self.parts[source].name, self._pass(source, number, oldest).batch(batch)

    def negatives(self, step: int, row: int, count: int) -> list[int]:
        """Returns the indices of the row's `count` hard negatives that take part in a step."""
        epoch = step // self.steps_per_epoch
        return drawn_negatives(row, count, self.max_hard_negatives, epoch, self.seed, self.negative_sampling)

    def meeting(self, epoch: int) -> int:
        """Rows of an epoch that share a text or document with an earlier row of their batch, over all sources."""
        rows = 0
        for source, size in enumerate(self._batches):
            taken = self._taken(source, epoch)
            oldest = taken.start // size
            for number in range(oldest, -(-taken.stop // size)):
                first, stop = max(0, taken.start - number * size), min(size, taken.stop - number * size)
                rows += self._pass(source, number, oldest).meeting(first, stop)
        return rows

    def _taken(self, source: int, epoch: int) -> range:
        """Returns the batches of a source's stream that an epoch takes."""
        if self.mixing == "round_robin":  # steps t with t % sources == source
            first, stop = (-(-(e * self.steps_per_epoch - source) // len(self.parts)) for e in (epoch, epoch + 1))
            return range(first, stop)
        return range(epoch * self.quotas[source], (epoch + 1) * self.quotas[source])

    def _pass(self, source: int, number: int, oldest: int) -> Pass:
        """Returns a pass over a source. Drops passes before `oldest` from the cache, and all when they are too many."""
        if (source, number) not in self._passes:
            cached = [key for key in self._passes if key[0] == source]
            for key in cached:
                if key[1] < oldest or len(cached) >= CACHED_PASSES:
                    del self._passes[key]
            part = self.parts[source]
            key = self._key("pass", part.name, number, len(part.rows))
            apart = self.apart is None or part.name in self.apart
            self._passes[source, number] = Pass(part, self.batch_size, self._batches[source], key, apart)
        return self._passes[source, number]

    def _key(self, *what: str | int) -> str:
        return json.dumps([PLAN_VERSION, self.fingerprint, self.seed, *what])


def batches_of(rows: int, batch_size: int, last_batch: str) -> int:
    """Batches of a pass over a source. A last batch of one row is none: it has no in-batch negative."""
    full, rest = divmod(rows, batch_size)
    return full + (1 if rest >= 2 and last_batch == "keep" else 0)


def shares(total: int, weights: list[float]) -> list[int]:
    """Splits total (>= len(weights)) into integers >= 1 in proportion to the weights, by the largest remainder."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    while 0 in parts:
        parts[parts.index(max(parts))] -= 1
        parts[parts.index(0)] += 1
    return parts


def rank_slice(batch: np.ndarray, rank: int, world: int, sizes: np.ndarray) -> np.ndarray:
    """Returns the rows of a global batch that one rank embeds, in the batch's order. Ranks differ by at most one row.

    sizes: of each row's texts. Rows are dealt from the largest to the smallest, in alternating order of the ranks, so
    that no rank waits long for another.
    """
    turn, rest = np.divmod(np.arange(len(batch)), world)
    to = np.where(turn % 2, world - 1 - rest, rest)
    return batch[np.sort(np.argsort(-sizes, kind="stable")[to == rank])]


def total_steps(plan: BatchPlan, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole run."""
    planned = plan.epoch_steps * epochs
    return min(planned, max_steps or planned)
