"""Time, memory and products of a device."""

import statistics
import time
from collections.abc import Callable

import torch


class Clock:
    """Measures work on one device."""

    def __init__(self, device: torch.device, rounds: int):
        self.device, self.rounds = device, rounds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int | None = None, warm: bool = True) -> float:
        """Median seconds. warm: after one round that does not count."""
        if warm:
            work()
        taken = []
        for _ in range(rounds or self.rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak(self, work: Callable[[], object]) -> int | None:
        """Most bytes allocated while it works, above those before; None where the device does not count them."""
        if self.device.type != "cuda":
            work()
            return None
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def products(self, dtype: torch.dtype, size: int) -> float:
        """Floating-point operations per second of a product of two (size, size) matrices."""
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: a @ b)
