"""AdamW over named parameters, its learning rate, and the loss scale of fp16."""

import math

import torch
from torch import nn

from trainer.config.sections import OptimConfig
from trainer.model.quantization import adamw_8bit


def param_groups(module: nn.Module, optim: OptimConfig) -> list[dict]:
    """Two groups: matrices with weight decay, vectors (biases, norms) without. Order follows named_parameters()."""
    trained = [p for p in module.parameters() if p.requires_grad]
    dims = [getattr(p, "ds_shape", p.shape) for p in trained]  # under ZeRO-3 a parameter hides its shape
    matrices = [p for p, shape in zip(trained, dims) if len(shape) > 1]
    vectors = [p for p, shape in zip(trained, dims) if len(shape) <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optim: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    if optim.name == "adamw_8bit":
        return adamw_8bit(param_groups(module, optim), optim)
    # Engine.apply gives every update its rate. The fused kernel of CPU and CUDA updates in one pass over memory.
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(param_groups(module, optim), lr=0.0, betas=optim.betas, eps=optim.eps, fused=fused)


def lr_factor(step: int, total: int, optim: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`, as a share of optim.lr. Rises linearly over
    round(warmup_ratio * total) steps (the first step already learns), then falls to 0 after the last step, linearly or
    along half a cosine. A pure function: there is no scheduler state to lose."""
    warmup = round(optim.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match optim.schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case _:
            return 1.0


class LossScale:
    """Dynamic loss scale for fp16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2); 1 where it is not used."""

    def __init__(self, used: bool):
        self.used = used
        self.value = 2.0**14 if used else 1.0
        self.good_steps = 0

    def update(self, overflowed: bool) -> None:
        if not self.used:
            return
        if overflowed:
            self.value, self.good_steps = max(1.0, self.value / 2), 0
            return
        self.good_steps += 1
        if self.good_steps % 1000 == 0:
            self.value = min(2.0**24, self.value * 2)

    def state(self) -> dict:
        return {"value": self.value, "good_steps": self.good_steps}

    def load(self, state: dict) -> None:
        self.value, self.good_steps = state["value"], state["good_steps"]


def clip_factor(norm: float, max_norm: float | None) -> float:
    """Factor of the gradients by which their global norm becomes at most max_norm."""
    if max_norm is None or not math.isfinite(norm) or norm <= max_norm:
        return 1.0
    return max_norm / (norm + 1e-6)
