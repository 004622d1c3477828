"""The memory that a model takes, computed without its weights: its layers are built of tensors without data.

- torch's fake tensors have shapes, types and storage sizes, and every operation runs on these alone.
- So parameters are counted, and forward and backward passes followed allocation by allocation, for any family and
  adapter, in a few seconds and without memory.
- The code is that of training: packing, pooling, adapters and recomputed blocks are the real ones.
"""

import weakref
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.config.sections import RunConfig
from trainer.distributed.collectives import in_buckets
from trainer.distributed.device import DTYPES
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.torch_engine import BUCKET_BYTES
from trainer.model import adapters, dense_layers
from trainer.model.build import freeze, read_settings
from trainer.model.embedder import Embedder
from trainer.model_folder.spec import ModelSpec


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    linear: bool = False  # the weight of a linear layer that quantisation would take

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Chunk:
    """Bytes of a chunk's forward and backward pass."""

    tokens: int  # of the chunk
    kept: int  # bytes that the forward pass leaves for the backward pass
    first: int  # peak bytes of both passes, before any gradient exists
    later: int  # peak bytes of both passes beside existing gradients, which are not counted


@dataclass(frozen=True)
class Footprint:
    """The memory of a model."""

    parameters: list[Parameter]  # in the model's order
    buffers: int  # bytes of its buffers
    size: int  # of an embedding
    buckets: list[int]  # bytes of each bucket in which gradients travel without DeepSpeed
    chunk: Chunk


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, while they live. now, peak: since the start."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage(), before)
        return out

    def _see(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in before:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def footprint(config: RunConfig, spec: ModelSpec, device: str, tokens: int, length: int) -> Footprint:
    """Returns the memory of a run's model in chunks of `tokens` tokens, of texts of `length` tokens.

    device: cpu, mps or cuda. A GPU is an unpadded pass on a CPU with fused attention, without the kernels' own memory.
    """
    dtype = DTYPES[config.train.precision]
    with torch.device("meta"):
        embedder = _build(config, spec)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _put_on_cpu(embedder)
        if device == "cpu":
            embedder.pack(torch.device("cpu"))
        linear = {f"{n}.weight" for n, m in embedder.backbone.named_modules() if isinstance(m, torch.nn.Linear)}
        parameters = [
            Parameter(name, tuple(p.shape), p.requires_grad, name in linear and not p.requires_grad)
            for name, p in embedder.parameters_by_name().items()
        ]
        buffers = sum(b.untyped_storage().nbytes() for b in embedder.buffers())
        trained = [p for p in embedder.parameters() if p.requires_grad]
        buckets = [sum(p.numel() * p.element_size() for p in some) for some in in_buckets(trained, BUCKET_BYTES)]
        chunk = _chunk(embedder, max(length, min(tokens, CHUNK_TOKENS[device])), length, dtype)
    return Footprint(parameters, buffers, embedder.size, buckets, chunk)


def _build(config: RunConfig, spec: ModelSpec) -> Embedder:
    settings, kind, _ = read_settings(spec.base, spec, config.model)
    settings.dtype = torch.float32
    code = {"trust_remote_code": config.model.trust_remote_code}
    backbone = kind.from_config(settings, **code) if kind.__name__ == "AutoModel" else kind(settings)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    layers = dense_layers.build(spec.dense).requires_grad_(config.model.finetune == "full")
    embedder = Embedder(backbone, layers, spec.pooling, spec.normalize, config.model.dropout == "model")
    if config.model.finetune != "full":
        lora = adapters.settings_of(backbone, config.model.lora)
        embedder.adapter = adapters.Adapter(adapters.wrap(backbone, lora), spec.base)
    freeze(backbone, config.model.freeze)
    embedder.train()
    if config.train.gradient_checkpointing:
        embedder.recompute()
    return embedder


def _put_on_cpu(embedder: Embedder) -> None:
    """Replaces meta tensors by fake tensors of the CPU: some operations refuse to mix meta and CPU tensors."""
    replaced: dict[int, torch.Tensor] = {}  # tied weights stay tied
    for module in embedder.modules():
        for name, p in module._parameters.items():
            if p is not None:
                new = replaced.get(id(p))
                new = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad) if new is None else new
                module._parameters[name] = replaced[id(p)] = new
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def _chunk(embedder: Embedder, tokens: int, length: int, dtype: torch.dtype | None) -> Chunk:
    count = max(1, tokens // length)
    ids, lengths = torch.ones(count * length, dtype=torch.int64), [length] * count
    kept, first = _passes(embedder, ids, lengths, dtype)
    _, later = _passes(embedder, ids, lengths, dtype)
    embedder.zero_grad()
    return Chunk(count * length, kept, first, later)


def _passes(embedder: Embedder, ids: torch.Tensor, lengths: list[int], dtype: torch.dtype | None) -> tuple[int, int]:
    """Returns (bytes kept after the forward pass, peak bytes of both passes)."""
    with Allocations() as seen:
        out = embedder(ids, lengths, 0, dtype)
        kept = seen.now
        (out * torch.zeros_like(out)).sum().backward()
        del out
    return kept, seen.peak
