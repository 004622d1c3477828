"""Every collective of the trainer. Each is right at world size one, so callers never ask whether there is a world."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.common.errors import BadInput, Failed

STORE_SECONDS = 10.0  # for an answer of the store that the group met at
OUT_OF_REACH = "The ranks' reports are out of reach: the machine of rank 0 is gone, or the link to it."


class World:
    """A process group seen from one rank. Counts its collectives, to be held against a plan of them.

    sent: bytes that this rank sends in them if they run around a ring, the least that is possible for their sizes.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.calls = 0
        self.sent = 0
        self.doing = "joining"  # the collective this rank is in, for the message where it never ends

    def gather_ints(self, values: list[int]) -> Tensor:
        """(k,) integers of every rank as an int64 CPU tensor of shape (world, k)."""
        mine = torch.tensor(values, dtype=torch.int64)
        if self.size == 1:
            return mine[None]
        out = [torch.empty_like(mine, device=self._wire()) for _ in range(self.size)]
        self._begin("all-gather of numbers", mine, self.size - 1)
        dist.all_gather(out, mine.to(self._wire()))
        return torch.stack(out).cpu()

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Rows of every rank, (counts[rank], …) each, concatenated in rank order to (sum(counts), …). No gradient."""
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
        """The adjoint of gather_rows: (sum(counts), …) summed over ranks; this rank gets its own (counts[rank], …)."""
        if self.size == 1:
            return rows
        self._begin("all-reduce of the embeddings' gradient", rows, 2 * (self.size - 1) / self.size)
        dist.all_reduce(rows)
        start = sum(counts[: self.rank])
        return rows[start : start + counts[self.rank]]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on the device the values came from."""
        if self.size == 1:
            return values
        travelling = values.to(self._wire(), copy=True)
        self._begin("all-reduce of what is logged", travelling, 2 * (self.size - 1) / self.size)
        dist.all_reduce(travelling)
        return travelling.to(values.device)

    def sum_flat(self, tensors: list[Tensor], bucket_bytes: int) -> None:
        """Sums tensors over ranks in place, packed into fixed buckets in the given order.

        Fixed buckets fix the order of the floating-point sums: with three and more ranks that order depends on where
        a number stands in its bucket, and exact resume needs it to stay the same.
        """
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
        """Runs `work` on rank 0 and gives its picklable result to every rank, or raises its error on every rank."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as caught:  # whatever it is, the other ranks must not wait for a result
                error = caught if isinstance(caught, (BadInput, Failed, OSError)) or self.size == 1 else None
                error = error or Failed(f"{type(caught).__name__}: {caught}")
        result, error = self.from_first((result, error))
        if error is not None:
            error.on_every_rank = True  # one report is enough
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
        found = [None] * self.size
        self._begin("all-gather of facts")
        dist.all_gather_object(found, value)
        return found

    def report(self, step: int) -> None:
        """Leaves where this rank is in the group's store, for ranks that wait for it in vain."""
        if self.size > 1:
            _store().set(f"embedfleet/{self.rank}", json.dumps([step, self.calls, time.time()]))

    def lost(self, error: RuntimeError) -> Failed | None:
        """What a collective that failed or never ended means, naming who is behind; None for any other error."""
        if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            return None
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        return Failed(
            f"rank {self.rank} lost the others in its collective {self.calls} ({self.doing}): {reason}. "
            f"{self._whereabouts()} Look at the output of the rank that is behind; --resume goes on from the last "
            "checkpoint"
        )

    def _whereabouts(self) -> str:
        """Where every rank was at its last report; a rank that is gone no longer moves.

        Asked for in a thread: where the link to the store's machine is cut, the answer would take TCP's 15 minutes.
        """
        told: list[str] = []
        asking = threading.Thread(target=lambda: told.append(self._reports()), daemon=True)
        asking.start()
        asking.join(STORE_SECONDS)
        return told[0] if told else OUT_OF_REACH

    def _reports(self) -> str:
        try:
            keys = [f"embedfleet/{rank}" for rank in range(self.size)]
            seen = [json.loads(_store().get(key)) if _store().check([key]) else None for key in keys]
        except RuntimeError:  # the store was on a machine that is gone
            return OUT_OF_REACH
        told = [
            f"rank {rank} after step {at[0]}, collective {at[1]}, {time.time() - at[2]:.0f} s ago"
            for rank, at in enumerate(seen)
            if at
        ]
        return f"Last reports: {'; '.join(told) or 'none'}."

    def _begin(self, what: str, tensor: Tensor | None = None, times: float = 0.0) -> None:
        self.doing = what
        self.calls += 1
        if tensor is not None:
            self.sent += int(times * tensor.numel() * tensor.element_size())

    def _wire(self) -> str:
        """Where tensors must lie to travel: gloo carries CPU tensors, nccl CUDA ones."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"


def in_buckets(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Tensors in order, in buckets that are each closed once they hold `limit` bytes."""
    buckets: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if held >= limit:
            buckets.append([])
            held = 0
        buckets[-1].append(tensor)
        held += tensor.numel() * tensor.element_size()
    return buckets


def _store() -> dist.Store:
    """The store that the group met at."""
    return dist.distributed_c10d._get_default_store()
