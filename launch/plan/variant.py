"""A run's model as one choice of bits stores it: numbers, bytes and work, from its footprint."""

from dataclasses import dataclass, replace
from functools import cached_property

from launch.plan.cost import MAPPED, Sizes
from launch.plan.memory import FP32, Model, frozen_bytes, moments_bytes
from trainer.config.sections import RunConfig
from trainer.diagnosis.profile import Line, Profile

PERSISTENT = 100_000  # numbers in the largest tensor that ZeRO-3 keeps whole


@dataclass(frozen=True)
class Variant:
    """A run file's model as one choice of bits stores it."""

    config: RunConfig
    footprint: object
    half: bool  # frozen weights lie in bf16

    @property
    def bits(self) -> int | None:
        return self.config.model.bits

    @property
    def base(self) -> str:
        """Storage of the frozen weights."""
        return f"{self.bits} bits" if self.bits else "bf16" if self.half else "fp32"

    @cached_property
    def model(self) -> Model:
        parameters = self.footprint.parameters
        trained = [p for p in parameters if p.trained]
        frozen = [p for p in parameters if not p.trained]
        stored = sum(
            frozen_bytes(p.shape[0], p.numel, self.bits if p.linear else None, self.half and (p.linear or p.table))
            for p in frozen
        )
        return Model(
            trained=sum(p.numel for p in trained),
            frozen=sum(p.numel for p in frozen),
            frozen_bytes=stored,
            buffers=self.footprint.buffers,
            small=sum(p.numel for p in parameters if p.numel <= PERSISTENT),
            moments=moments_bytes([p.numel for p in trained], self.config.optim.name == "adamw_8bit"),
            average=FP32 * sum(p.numel for p in trained) if self.config.optim.ema else 0,
        )

    @cached_property
    def sizes(self) -> Sizes:
        model, large = self.model, [p for p in self.footprint.parameters if p.numel > PERSISTENT]
        stored = FP32 * model.trained + model.frozen_bytes
        gathered = stored - (FP32 - self._compute) * sum(p.numel for p in large if p.product)
        small = len(self.footprint.parameters) - len(large)
        widths = [p.numel * (self._compute if p.product else FP32) for p in large]
        frozen = sum(p.numel for p in large if p.product and not p.trained)
        mapped = sum(width for width in widths if width >= MAPPED)
        return Sizes(
            model.trained, stored, gathered, sum(p.numel for p in large), mapped, frozen, len(large), small,
            self.footprint.attention, self.footprint.size,
        )  # fmt: skip

    @property
    def _compute(self) -> int:
        """Bytes of a number in matrix products."""
        return FP32 if self.config.train.precision in ("fp32", "tf32") else 2

    @cached_property
    def dequantised(self) -> tuple[int, int]:
        """Bytes moved to dequantise all linear layers once, and bytes of the largest dequantised one."""
        if not self.bits:
            return 0, 0
        linear = [p.numel for p in self.footprint.parameters if p.linear]
        return round(sum(linear) * (self.bits / 8 + self._compute)), self._compute * max(linear, default=0)

    def profile(self, recompute: bool) -> Profile | None:
        traced = self.footprint.recomputed if recompute else self.footprint.plain
        moved, _ = self.dequantised
        if traced is None or not moved:
            return traced

        def with_it(effort, times: int):
            return replace(effort, moved=Line(effort.moved.fixed + times * moved, effort.moved.per_token))

        backward = with_it(traced.backward, 2 if recompute else 1)
        return replace(traced, forward=with_it(traced.forward, 1), backward=backward)
