"""The tokens whose activations fit: `micro_batch_tokens: auto`, resolved once, by all ranks together."""

from typing import NamedTuple

import torch

from data_prep.common.workers import free_memory
from trainer.distributed.launcher_claims import local_world_size
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.protocol import Engine
from trainer.model.recompute import not_recomputed
from trainer.model_folder.spec import ModelSpec

SHARE = 0.6  # of the memory free after weights, gradients and optimizer state; the rest is for transients
LEAST = 64  # as of a budget in the run file
MOST = 2**22  # tokens: no batch needs more, and the number stays readable


class Activations(NamedTuple):
    """Bytes that autograd keeps."""

    per_token: float
    per_chunk: float  # whatever its size: weights cast to bf16, or gathered by ZeRO-3


def resolve_budget(asked: int | str, engine: Engine, spec: ModelSpec) -> int:
    """Returns the budget in padded tokens: `asked`, or for "auto" that of the rank with the least free memory, and the
    longest text's tokens at least.

    Predicted, not tried: a CPU process that runs out of memory is killed. Collective.
    """
    if asked != "auto":
        return asked
    free = SHARE * max(0, free_bytes(engine.device) - optimizer_bytes(engine))
    mine = tokens_that_fit(free, activations(engine, spec.rules.max_len), CHUNK_TOKENS[engine.device.type])
    least = int(engine.world.gather_ints([mine]).min())
    return min(MOST, max(LEAST, spec.rules.max_len, least))


def tokens_that_fit(free: float, kept: Activations, chunk: int) -> int:
    """Returns how many tokens' activations fit in `free` bytes, in chunks of at most `chunk` tokens."""
    several = free / (kept.per_token + kept.per_chunk / chunk)
    return int(several if several >= chunk else max(0.0, free - kept.per_chunk) / kept.per_token)


def activations(engine: Engine, length: int) -> Activations:
    """Measures what autograd keeps for texts of `length` tokens, on a forward pass of one and one of two. Collective.

    If blocks are recomputed: the input of each, and in the backward pass all of one.
    """
    blocks = engine.embedder.recomputed
    with not_recomputed(blocks):
        one, two = _kept(engine, 1, length), _kept(engine, 2, length)
    per_token, per_chunk = max(1.0, (two - one) / length), max(0.0, 2.0 * one - two)
    if blocks:
        inputs = 4 * engine.embedder.pooled_size * len(blocks)
        return Activations(per_token / len(blocks) + inputs, per_chunk / len(blocks))
    return Activations(per_token, per_chunk)


def _kept(engine: Engine, texts: int, length: int) -> int:
    weights = {p.data_ptr() for p in engine.embedder.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = engine.embed(torch.ones(texts * length, dtype=torch.int64), [length] * texts, seed=0)
    del out
    return sum(kept.values())


def optimizer_bytes(engine: Engine) -> int:
    """Bytes of the gradient and two AdamW moments in fp32, made by the first step; at most, without ZeRO or 8 bits."""
    return 12 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.named.values())


def free_bytes(device: torch.device) -> int:
    """Memory that this rank may still take: free on its GPU, or its share of what machine and cgroup have left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":  # the machine's memory, but what the system keeps for itself
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory() // local_world_size()
