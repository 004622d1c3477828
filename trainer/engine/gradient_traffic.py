"""The sum of gradients over ranks, which begins while the last backward pass still runs.

- Parameters lie in fixed buckets. The order of a floating-point sum depends on a number's position in its bucket, so
  that exact resume needs buckets that never change. (torch's DistributedDataParallel re-orders them.)
- A backward pass makes the gradients of the last layers first: buckets are sent from the last to the first.
- A bucket is sent when the last pass has made all of its gradients, and all before it are sent. Every rank sends the
  same buckets in the same order, whatever its number of passes.
"""

from collections import deque
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.distributed.collectives import World, in_buckets

BUCKET_BYTES = 64 * 2**20
IN_FLIGHT = 2  # buckets on their way at once: each is a copy of its gradients


class GradientTraffic:
    """Sums the gradients of parameters over ranks, once per step."""

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]):
        self.world = world
        self.buckets = in_buckets(list(parameters), BUCKET_BYTES)[::-1]
        self._bucket_of = {parameter: n for n, bucket in enumerate(self.buckets) for parameter in bucket}
        if world.size > 1:
            for parameter in self._bucket_of:
                parameter.register_post_accumulate_grad_hook(self._arrived)
        self.start()

    def start(self) -> None:
        """Begins a step."""
        self.last_pass = False  # the engine says when it begins
        self._missing = [set(bucket) for bucket in self.buckets]
        self._sent = 0
        self._in_flight: deque[tuple[list[nn.Parameter], Tensor, dist.Work]] = deque()

    def finish(self) -> None:
        """Sends what was not sent, and returns when every gradient is its sum over ranks."""
        for parameter in self._bucket_of:
            if parameter.grad is None:  # this rank had no rows, or nothing reaches the parameter
                parameter.grad = torch.zeros_like(parameter)
        if self.world.size == 1:
            return
        while self._sent < len(self.buckets):
            self._send()
        while self._in_flight:
            self._receive()

    def _arrived(self, parameter: nn.Parameter) -> None:
        """Hook: a backward pass has added to the gradient of `parameter`."""
        if not self.last_pass:
            return
        bucket = self._bucket_of[parameter]
        assert bucket >= self._sent, "a gradient changed after it was sent"
        self._missing[bucket].discard(parameter)
        while self._sent < len(self.buckets) and not self._missing[self._sent]:
            self._send()

    def _send(self) -> None:
        if len(self._in_flight) == IN_FLIGHT:
            self._receive()
        bucket = self.buckets[self._sent]
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in bucket])
        self._in_flight.append((bucket, flat, self.world.begin_sum(flat)))
        self._sent += 1

    def _receive(self) -> None:
        bucket, flat, work = self._in_flight.popleft()
        work.wait()
        for parameter, part in zip(bucket, flat.split([parameter.numel() for parameter in bucket])):
            parameter.grad.copy_(part.view_as(parameter))
