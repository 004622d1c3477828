"""The interface of an engine, however it divides weights and state among ranks."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.distributed.collectives import World
from trainer.engine.optimizer import LossScale
from trainer.engine.weight_average import Average
from trainer.model import quantization
from trainer.model.embedder import Embedder

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, as torch names them


@dataclass(frozen=True)
class Applied:
    """Outcome of one optimizer update."""

    grad_norm: float  # global L2 norm before clipping
    skipped: bool  # the gradient was not finite, nothing was changed


def empty(embedder: Embedder) -> None:
    """Takes the numbers of all parameters and buffers, and of quantised layers."""
    quantization.empty(embedder.quantised)
    for tensor in [*embedder.parameters(), *embedder.buffers()]:
        tensor.grad = None
        tensor.data = torch.empty(0, device=tensor.device, dtype=tensor.dtype)


class Engine(Protocol):
    """Holds a model, runs its passes, brings gradients together once per optimizer step, and updates the weights.
    State goes out and comes in as full fp32 tensors by parameter name, so any engine resumes any other's checkpoint."""

    world: World
    device: torch.device
    dtype: torch.dtype | None  # of the matrix products; None: fp32
    embedder: Embedder
    named: dict[str, nn.Parameter]  # trained parameters by name
    scale: LossScale
    average: Average | None  # of the weights, where the run keeps one
    lockstep: bool  # every forward pass is a collective: all ranks must make the same number
    gradient_factor: float  # for a rank's gradients, so that what leaves accumulate() is their sum over ranks
    buckets: int  # collectives of World that bring a step's gradients together; DeepSpeed's own are not counted

    def embed(self, tokens: Tensor, lengths: list[int], seed: int, prompts: list[int] | None = None) -> Tensor:
        """(texts, d) float32, see Embedder.forward."""

    def backward(self, surrogate: Tensor, last: bool = False) -> None:
        """Adds the gradients of the scalar `surrogate` to this rank's parameters, multiplied by the loss scale.
        last: no backward pass of this step follows, so that gradients may be sent while it runs."""

    def accumulate(self) -> AbstractContextManager[None]:
        """Encloses all backward passes of one optimizer step; leaving it reduces their gradients over ranks once."""

    def gradients(self) -> dict[str, Tensor]:
        """The global batch's gradient by parameter name, on the CPU, before clipping. Collective."""

    def apply(self, lr: float) -> Applied:
        """Clips and makes one AdamW update; leaves everything unchanged where the gradient is not finite."""

    def read(self, name: str) -> Tensor:
        """The whole of a trained parameter, on every rank. Collective."""

    def weights(self) -> dict[str, Tensor]:
        """Full fp32 weights by name, on the CPU: of the model or of its adapter (rank 0; empty elsewhere). Collective.
        The tensors may be the engine's own: copy them before the next update."""

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments as `<MOMENTS>.<parameter>`, on the CPU, and the average of the weights. Collective.
        Complete on rank 0; empty before the first step."""

    def load_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Loads full moments by name. updates: AdamW updates that they have seen. Weights are loaded before."""

    def release(self) -> None:
        """Gives back the memory of weights, gradients and moments; the engine runs no pass afterwards. Collective."""
