"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks keep their inputs and compute twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
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


def recompute(embedder) -> list[nn.Module]:
    """Makes every block of the embedder's backbone compute again in the backward pass; returns the blocks. Raises
    BadInput for a family whose blocks transformers does not prepare for it. Dropout is the same in both passes: torch
    restores its own generator, and run() the packed model's noise."""
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

        def again(*inputs):
            if noise:
                noise.restore(before)
            return block(*inputs)

        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=embedder.noisy)

    for block in blocks:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, run
    return blocks
