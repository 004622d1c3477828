"""The tokens whose activations fit: `micro_batch_tokens: auto`, resolved once, by all ranks together."""

from pathlib import Path

import psutil
import torch

from trainer.distributed.launcher_claims import local_world_size
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.protocol import Engine
from trainer.model.recompute import not_recomputed
from trainer.model_folder.spec import ModelSpec

SHARE = 0.6  # of the memory free after weights, gradients and optimizer state; the rest is for transients
MOST = 2**22  # tokens: no batch needs more, and the number stays readable


def resolve_budget(asked: int | str, engine: Engine, spec: ModelSpec) -> int:
    """Returns the budget in padded tokens: `asked`, or for "auto" that of the rank with the least free memory.

    Predicted, not tried: a CPU process that runs out of memory is killed. Collective.
    """
    if asked != "auto":
        return asked
    per_token = activation_bytes_per_token(engine, spec.rules.max_len)
    free = free_bytes(engine.device) - optimizer_bytes(engine)
    mine = int(SHARE * max(0, free) / per_token)
    least = int(engine.world.gather_ints([mine]).min())
    return min(MOST, max(CHUNK_TOKENS[engine.device.type], least))


def activation_bytes_per_token(engine: Engine, length: int) -> float:
    """Bytes that autograd keeps per token of a text of `length` tokens, measured on one forward pass. Collective.

    If blocks are recomputed: the input of each, and in the backward pass all of one.
    """
    blocks = engine.embedder.recomputed
    with not_recomputed(blocks):
        whole = _kept_per_token(engine, length)
    return whole / len(blocks) + 4 * engine.embedder.pooled_size * len(blocks) if blocks else whole


def _kept_per_token(engine: Engine, length: int) -> float:
    weights = {p.data_ptr() for p in engine.embedder.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = engine.embed(torch.ones(length, dtype=torch.int64), [length], seed=0)
    del out
    return max(1.0, sum(kept.values()) / length)


def optimizer_bytes(engine: Engine) -> int:
    """Bytes of the gradient and two AdamW moments in fp32, made by the first step; at most, without ZeRO or 8 bits."""
    return 12 * sum(getattr(p, "ds_numel", p.numel()) for p in engine.named.values())


def free_bytes(device: torch.device) -> int:
    """Memory that this rank may still take: free on its GPU, or its share of what machine and cgroup have left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    ranks = local_world_size()
    return min(psutil.virtual_memory().available, _cgroup_left()) // ranks


def _cgroup_left() -> int:
    """Bytes below the limit of a container or a batch job; a huge number if there is none."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 2**62
