"""Frozen weights in bf16 (`model.base_dtype`): half of the memory and, under ZeRO-3, half of the traffic.

- The dtype says how a frozen weight is stored, never how it is used. Products run in the dtype of their inputs, so the
  run computes exactly as with the rounded weights in fp32, with autocast and without.
- Weights of linear layers and embeddings are stored so. Norms, biases, dense layers behind the pooling and parameters
  of a family's own modules stay fp32, as in peft's preparation of quantised models: they are small, and used in fp32.
- Also fp32 stays what transformers keeps in fp32 when it loads a model in a lower precision (T5's `wo`).
- Trained weights are always fp32.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.loading import Sources


@dataclass
class Rounded:
    """The frozen weights that a run stores in bf16."""

    parameters: frozenset[nn.Parameter]
    numbers: int
    kept: int  # frozen numbers that stay fp32
    changed: int = 0  # weights that lost digits; 0 where the model was published in bf16

    def note(self, stored: Tensor, half: Tensor) -> None:
        self.changed += stored.dtype != torch.bfloat16 and not torch.equal(half.float(), stored.float())


def resolve(asked: str, device: torch.device, compute: torch.dtype | None, fp32_base: bool = False) -> str:
    """Returns fp32 or bf16 for model.base_dtype. compute: dtype of the matrix products, None for fp32. fp32_base: of
    the ModelSpec."""
    if asked != "auto":
        return asked
    return "bf16" if compute == torch.bfloat16 and device.type != "cpu" and not fp32_base else "fp32"


def matrices(backbone: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """Returns the frozen fp32 weights that can be stored in bf16, each with the modules that use it."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, bool]]] = defaultdict(list)
    stays = _kept_by_transformers(backbone)
    for path, module in backbone.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fits = name == "weight" and _is_plain(module) and not stays.intersection(path.split("."))
                owners[parameter].append((module, fits))
    return {
        parameter: [module for module, _ in users]
        for parameter, users in owners.items()
        if all(fits for _, fits in users) and parameter.dtype == torch.float32 and not parameter.requires_grad
    }


def product_weights(backbone: nn.Module) -> set[nn.Parameter]:
    """Returns the fp32 weights that a pass uses in products of linear layers only, which autocast rounds before it
    uses them. None of a model's own code, nor with DoRA, which also measures the rows of its weights."""
    if not type(backbone).__module__.startswith("transformers."):
        return set()
    inside, elsewhere = set(), set()
    for module in backbone.modules():
        if len(getattr(module, "lora_magnitude_vector", ())):
            return set()
        users = inside if type(module) is nn.Linear else elsewhere
        users.update(p for p in module._parameters.values() if p is not None and p.dtype == torch.float32)
    return inside - elsewhere


def _kept_by_transformers(backbone: nn.Module) -> set[str]:
    """Returns names of modules that transformers keeps in fp32."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return {part for name in names for entry in getattr(backbone, name, None) or () for part in entry.split(".")}


def _is_plain(module: nn.Module) -> bool:
    """True for linear layers, and for embeddings also of a family's own kind: their forward looks rows up."""
    return type(module) is nn.Linear or (isinstance(module, nn.Embedding) and module.max_norm is None)


def round_base(backbone: nn.Module, sources: Sources) -> Rounded:
    """Stores the frozen matrices in bf16, one at a time: now, or when an engine fills them."""
    chosen = matrices(backbone)
    numbers = sum(parameter.numel() for parameter in chosen)
    frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad and p.is_floating_point())
    rounded = sources.rounded = Rounded(frozenset(chosen), numbers, frozen - numbers)
    for parameter, users in chosen.items():
        sources.round(parameter)
        for module in users:
            module.forward = MethodType(_product if isinstance(module, nn.Linear) else _look_up, module)
    return rounded


def in_fp32(tensor: Tensor) -> Tensor:
    """A stored weight as checkpoints hold it; others as they are."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    """Forward pass of a linear layer: the dtype is that of the input, or autocast's."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _Product.apply(x.to(dtype), layer.weight, layer.bias)


class _Product(torch.autograd.Function):
    """x (…, in), weight (out, in) bf16 and frozen -> (…, out). The backward pass keeps the stored weight only, and
    makes its copy in the dtype of x again."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        of_x, _, of_bias = ctx.needs_input_grad
        with torch.autocast(upstream.device.type, enabled=False):
            return (
                upstream @ weight.to(upstream.dtype) if of_x else None,
                None,
                upstream.reshape(-1, upstream.shape[-1]).sum(dim=0) if of_bias else None,
            )


def _look_up(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Forward pass of an embedding: rows in fp32. A family's own forward (which may scale them) gets a table of the
    needed rows only."""
    own = type(embedding).forward
    if own is nn.Embedding.forward:
        return F.embedding(ids, embedding.weight).float()
    rows, positions = ids.unique(return_inverse=True)
    with _in_place_of_weight(embedding, F.embedding(rows, embedding.weight).float()):
        return own(embedding, positions)


@contextmanager
def _in_place_of_weight(embedding: nn.Embedding, rows: Tensor) -> Iterator[None]:
    """Lets `embedding.weight` be `rows`: attributes of an object come before a module's parameters."""
    padding, embedding.padding_idx = embedding.padding_idx, None
    embedding.__dict__["weight"] = rows
    try:
        yield
    finally:
        del embedding.__dict__["weight"]
        embedding.padding_idx = padding
