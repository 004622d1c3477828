"""Every collective of the trainer. Each is right at world size one, so that callers need no branch."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.common.errors import Failed, KnownError, of_system

STORE_SECONDS = 10.0  # for an answer of the store that the group met at
OUT_OF_REACH = "The ranks' reports are out of reach: the machine of rank 0 is gone, or the link to it."


class World:
    """A process group seen from one rank. Counts its collectives, to compare them with the plan."""

    def __init__(self, rank: int = 0, size: int = 1, again: str = "--resume goes on from the last checkpoint"):
        """again: how to go on after a rank was lost, for the message."""
        self.rank, self.size, self.again = rank, size, again
        self.calls = 0  # collectives begun
        self.sent = 0  # bytes that this rank sends if every collective runs around a ring, the least possible
        self.doing = "joining"  # the current collective, for the message where it never ends
        self.step = 0  # optimizer steps made

    def gather_ints(self, values: list[int]) -> Tensor:
        """Gathers k integers of every rank: (world, k) int64 on the CPU."""
        mine = torch.tensor(values, dtype=torch.int64)
        if self.size == 1:
            return mine[None]
        out = [torch.empty_like(mine, device=self._wire()) for _ in range(self.size)]
        self._begin("all-gather of numbers", mine, self.size - 1)
        dist.all_gather(out, mine.to(self._wire()))
        return torch.stack(out).cpu()

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Concatenates the (counts[rank], …) rows of every rank in rank order: (sum(counts), …). No gradient."""
        assert rows.shape[0] == counts[self.rank], f"rank {self.rank}: {rows.shape[0]} rows, {counts} announced"
        if self.size == 1:
            return rows
        longest = max(counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        out = [torch.empty_like(padded) for _ in counts]
        self._begin("all-gather of rows", padded, self.size - 1)
        dist.all_gather(out, padded)
        return torch.cat([part[:n] for part, n in zip(out, counts)])

    def sum_home(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Sums (sum(counts), …) over ranks and returns this rank's (counts[rank], …): the adjoint of gather_rows."""
        if self.size == 1:
            return rows
        self._begin("all-reduce of the embeddings' gradient", rows, 2 * (self.size - 1) / self.size)
        dist.all_reduce(rows)
        start = sum(counts[: self.rank])
        return rows[start : start + counts[self.rank]]

    def sum_part(self, values: Tensor) -> Tensor:
        """Sums (world x n,) over ranks and returns this rank's (n,): what ZeRO does with gradients."""
        if self.size == 1:
            return values
        part = values.new_empty(values.shape[0] // self.size)
        self._begin("reduce-scatter", part, self.size - 1)
        dist.reduce_scatter_tensor(part, values)
        return part

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on the values' device."""
        if self.size == 1:
            return values
        travelling = values.to(self._wire(), copy=True)
        self._begin("all-reduce of what is logged", travelling, 2 * (self.size - 1) / self.size)
        dist.all_reduce(travelling)
        return travelling.to(values.device)

    def begin_sum(self, flat: Tensor) -> dist.Work:
        """Begins to sum `flat` over ranks, in place. Complete once the returned work was waited for."""
        self._begin("all-reduce of the gradient", flat, 2 * (self.size - 1) / self.size)
        return dist.all_reduce(flat, async_op=True)

    def sum_flat(self, tensors: list[Tensor], bucket_bytes: int) -> None:
        """Sums tensors over ranks in place, packed into fixed buckets in the given order. With three and more ranks the
        order of a floating-point sum depends on the number's position in its bucket; exact resume needs it fixed."""
        if self.size == 1:
            return
        for bucket in in_buckets(tensors, bucket_bytes):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._begin("all-reduce of the gradient", flat, 2 * (self.size - 1) / self.size)
            dist.all_reduce(flat)
            for t, part in zip(bucket, flat.split([t.numel() for t in bucket])):
                t.copy_(part.view_as(t))

    def from_first(self, value):
        """Rank 0's picklable value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        self._begin("broadcast of rank 0's result")
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_first(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0 and returns its picklable result on every rank, or raises its error on every rank."""
        if self.size == 1:
            return work()
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as caught:  # whatever it is, the other ranks must not wait for a result
                error = known(caught)
        result, error = self.from_first((result, error))
        if error is not None:
            error.on_every_rank = True
            raise error
        return result

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's values, in place."""
        if self.size > 1:
            self._begin("broadcast of a tensor")
            dist.broadcast(tensor, src=0)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            self._begin("barrier")
            dist.barrier()

    def gather_objects(self, value) -> list:
        """Every rank's picklable value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        self._begin("all-gather of facts")
        dist.all_gather_object(values, value)
        return values

    def deal(self, values: list | None) -> Any:
        """The picklable value that rank 0 has for this rank. values: one for each rank; None on the other ranks."""
        if self.size == 1:
            return values[0]
        box = [None]
        self._begin("scatter of rank 0's values")
        dist.scatter_object_list(box, values, src=0)
        return box[0]

    def collect(self, value) -> list | None:
        """Every rank's picklable value, in rank order, on rank 0; None on the others."""
        if self.size == 1:
            return [value]
        values = None if self.rank else [None] * self.size
        self._begin("gather of values")
        dist.gather_object(value, values, dst=0)
        return values

    def report(self, step: int) -> None:
        """Writes this rank's progress into the group's store, for ranks that wait for it in vain."""
        self.step = step
        if self.size > 1:
            _store().set(f"embedfleet/{self.rank}", json.dumps([step, self.calls, time.time()]))

    def lost(self, error: RuntimeError) -> Failed | None:
        """Returns the error to raise for a failed collective, naming the ranks that are behind; None for others."""
        if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            return None
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        return Failed(
            f"rank {self.rank} lost the others in its collective {self.calls} ({self.doing}): {reason}. "
            f"{self._whereabouts()} Look at the output of the rank that is behind; {self.again}"
        )

    def _whereabouts(self) -> str:
        """Returns the ranks' last reports. A thread asks: over a cut link the store would take TCP's 15 minutes."""
        answers: list[str] = []
        query = threading.Thread(target=lambda: answers.append(self._reports()), daemon=True)
        query.start()
        query.join(STORE_SECONDS)
        return answers[0] if answers else OUT_OF_REACH

    def _reports(self) -> str:
        try:
            keys = [f"embedfleet/{rank}" for rank in range(self.size)]
            reports = [json.loads(_store().get(key)) if _store().check([key]) else None for key in keys]
        except RuntimeError:  # the store was on a machine that is gone
            return OUT_OF_REACH
        lines = []
        for rank, report in enumerate(reports):
            if report:
                step, calls, seconds = report
                lines.append(f"rank {rank} after step {step}, collective {calls}, {time.time() - seconds:.0f} s ago")
        return f"Last reports: {'; '.join(lines) or 'none'}."

    def _begin(self, what: str, tensor: Tensor | None = None, times: float = 0.0) -> None:
        self.doing = what
        self.calls += 1
        if tensor is not None:
            self.sent += int(times * tensor.numel() * tensor.element_size())

    def _wire(self) -> str:
        """Device of tensors that travel: CPU with gloo, CUDA with nccl."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


def known(error: Exception) -> KnownError:
    """Returns the error as one that can travel between ranks and be reported once."""
    if isinstance(error, KnownError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return Failed(of_system(error))
    return Failed(f"{type(error).__name__}: {error}")


def in_buckets(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Splits tensors, in order, into buckets; each is closed once it has `limit` bytes."""
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size >= limit:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel() * tensor.element_size()
    return buckets


def _store() -> dist.Store:
    """The store that the group met at."""
    return dist.distributed_c10d._get_default_store()
