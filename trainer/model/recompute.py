"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks keep their inputs and compute twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_prep.common.errors import BadInput


@contextmanager
def not_recomputed(blocks: list[nn.Module]) -> Iterator[None]:
    """Turns gradient checkpointing off inside the `with` statement."""
    for block in blocks:
        block.gradient_checkpointing = False
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = True


def on_apple_gpu(inputs: tuple) -> bool:
    return any(isinstance(value, Tensor) and value.device.type == "mps" for value in inputs)


def recompute(embedder) -> list[nn.Module]:
    """Makes every block of the embedder's backbone compute again in the backward pass; returns the blocks. Raises
    BadInput for a family whose blocks transformers does not prepare for it. Dropout is the same in both passes: torch
    restores its own generators but MPS's, run() that one and the packed model's noise."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [m for m in embedder.backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not blocks:
        kind = embedder.backbone.config.model_type
        raise BadInput(
            f"train.gradient_checkpointing: transformers cannot recompute the blocks of a {kind}; turn it off"
        )

    def run(block: Callable, *inputs):
        noise = embedder.packing.noise if embedder.packing else None
        before = noise.state() if noise else None
        drawn = torch.mps.get_rng_state() if embedder.noisy and on_apple_gpu(inputs) else None

        def again(*inputs):
            if noise:
                noise.restore(before)
            if drawn is not None:
                torch.mps.set_rng_state(drawn)
            return block(*inputs)

        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=embedder.noisy)

    for block in blocks:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, run
    return blocks
