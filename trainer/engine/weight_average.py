"""An exponential moving average of the trained weights (Polyak and Juditsky 1992), kept beside an engine's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.engine.protocol import Engine

PREFIX = "ema."  # of a parameter's name, in a checkpoint's state


class Average:
    """average <- decay * average + (1 - decay) * weights, once per update. Ranks divide it as they do the weights."""

    def __init__(self, named: dict[str, nn.Parameter], decay: float, refresh: Callable[[], None] = lambda: None):
        """named: the trained parameters. refresh: called after the weights were changed in place here."""
        self.named, self.decay, self.refresh = named, decay, refresh
        self.values = [part.clone() for part in self._parts()]

    def _parts(self) -> list[Tensor]:
        """This rank's part of every parameter: all of it, or under ZeRO-3 its partition."""
        return [getattr(p, "ds_tensor", p).data for p in self.named.values()]

    def update(self) -> None:
        torch._foreach_lerp_(self.values, self._parts(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchanges weights and average while the block runs. Collective under ZeRO-3."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for part, value in zip(self._parts(), self.values):
            kept = part.clone()
            part.copy_(value)
            value.copy_(kept)
        self.refresh()

    def load(self, state: dict[str, Tensor], rank: int) -> None:
        """Loads whole tensors by PREFIX + name."""
        for (name, parameter), value in zip(self.named.items(), self.values):
            whole = state[PREFIX + name].flatten()
            first = rank * value.numel() if hasattr(parameter, "ds_tensor") else 0
            mine = whole[first : first + value.numel()]  # the last partition may end in padding
            value.view(-1)[: mine.numel()].copy_(mine)


def whole_average(engine: "Engine") -> dict[str, Tensor]:
    """Returns the average by PREFIX + name, on the CPU; empty without one. Complete on rank 0. Collective."""
    if engine.average is None:
        return {}
    with engine.average.in_place():
        weights = engine.weights()
        return {PREFIX + name: weights[name].clone() for name in engine.named if name in weights}


@contextmanager
def averaged(engine: "Engine") -> Iterator[None]:
    """Puts the average in the place of the engine's weights while the block runs, where it keeps one. Collective."""
    if engine.average is None:
        yield
        return
    with engine.average.in_place():
        yield
