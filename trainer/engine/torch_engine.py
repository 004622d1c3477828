"""The engine of one process, and of data parallelism without DeepSpeed."""

import math
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.config.sections import OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.gradient_traffic import GradientTraffic
from trainer.engine.optimizer import LossScale, adamw, clip_factor
from trainer.engine.protocol import MOMENTS, Applied, Engine, empty
from trainer.engine.weight_average import Average, whole_average
from trainer.model import quantization
from trainer.model.base_dtype import in_fp32
from trainer.model.embedder import Embedder


class TorchEngine(Engine):
    """Replicated weights. Gradients are summed over ranks in fixed buckets, once per step (gradient_traffic.py). Not by
    torch's DistributedDataParallel: it reduces per backward pass, re-orders its buckets after the first step (which
    breaks bit-exact resume with three and more ranks) and divides by the number of ranks."""

    lockstep = False  # ranks may run different numbers of forward passes
    gradient_factor = 1.0  # gradients are summed over ranks

    def __init__(
        self, embedder: Embedder, optim: OptimConfig, world: World, device: torch.device, dtype: torch.dtype | None
    ):
        self.world, self.device, self.dtype = world, device, dtype
        self.embedder = embedder
        self._fill()
        embedder.pack(device, dtype)
        self.named = embedder.trained()
        self.optimizer = adamw(embedder, optim, device)
        self.eight_bit = optim.name == "adamw_8bit"
        self.max_grad_norm = optim.max_grad_norm
        self.scale = LossScale(dtype == torch.float16)
        self.average = Average(self.named, optim.ema) if optim.ema else None
        self.traffic = GradientTraffic(world, self.named.values())

    def _fill(self) -> None:
        """Brings the weights to the device and rank 0's numbers to all ranks, a tensor at a time."""
        for parameter in self.embedder.parameters():
            if not self.embedder.quantised:  # which was built on its device
                self.embedder.sources.fill(parameter, self.device)
            self.world.broadcast(parameter.data)
        if not self.embedder.quantised:
            self.embedder.to(self.device)
        for buffer in self.embedder.buffers():
            self.world.broadcast(buffer.data)
        self.embedder.sources.close()

    @property
    def buckets(self) -> int:
        return len(self.traffic.buckets)

    def embed(self, tokens: Tensor, lengths: list[int], seed: int, prompts: list[int] | None = None) -> Tensor:
        return self.embedder(tokens, lengths, seed, self.dtype, prompts)

    def backward(self, surrogate: Tensor, last: bool = False) -> None:
        self.traffic.last_pass = last
        (surrogate * self.scale.value).backward()

    @contextmanager
    def accumulate(self):
        """Leaving it sums gradients over ranks and undoes the loss scale."""
        self.optimizer.zero_grad(set_to_none=True)
        self.traffic.start()
        yield
        self.traffic.finish()
        if self.scale.used:
            torch._foreach_mul_([p.grad for p in self.named.values()], 1.0 / self.scale.value)

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.detach().cpu().clone() for name, p in self.named.items()}

    def apply(self, lr: float) -> Applied:
        grads = [p.grad for p in self.named.values()]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()
        overflowed = not math.isfinite(norm)
        self.scale.update(overflowed)
        if overflowed:
            return Applied(norm, True)
        factor = clip_factor(norm, self.max_grad_norm)
        if factor != 1.0:
            torch._foreach_mul_(grads, factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.average:
            self.average.update()
        return Applied(norm, False)

    def read(self, name: str) -> Tensor:
        return self.named[name].detach()

    def weights(self) -> dict[str, Tensor]:
        if self.world.rank:
            return {}
        return {name: in_fp32(t.detach().cpu()) for name, t in self.embedder.stored().items()}

    def moments(self) -> dict[str, Tensor]:
        """8-bit moments stay as they are, in up to four tensors per parameter: other forms would not load the same."""
        if self.world.rank:
            return {}
        state = self.optimizer.state
        return whole_average(self) | {
            f"{key}.{name}": state[p][key].cpu()
            for name, p in self.named.items()
            for key in (*MOMENTS, *quantization.MOMENTS)
            if key in state.get(p, {})  # none before the first step
        }

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        if self.average:
            self.average.load(moments, self.world.rank)
        if self.eight_bit:
            quantization.load_moments(self.optimizer, self.named, moments, updates)
            return
        for name, parameter in self.named.items():
            state = {key: moments[f"{key}.{name}"].to(self.device) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(updates), device=self.device), **state}

    def release(self) -> None:
        empty(self.embedder)
        self.optimizer.state.clear()
        self.average = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
