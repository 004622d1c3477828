"""What a model takes in memory, found without its weights: its layers are built of tensors that have no data.

torch's fake tensors have shapes, types and storage sizes, and run every operation on these alone. So parameters are
counted, and forward and backward passes are followed allocation by allocation, for any family and adapter, in a few
seconds and no memory. The code is the training's: packing, pooling, adapters and recomputed blocks are the real ones.
"""

import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.config.sections import RunConfig
from trainer.distributed.collectives import in_buckets
from trainer.distributed.device import DTYPES
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.torch_engine import BUCKET_BYTES
from trainer.model import adapters
from trainer.model.build import freeze, read_settings
from trainer.model.embedder import Embedder
from trainer.model_folder import dense
from trainer.model_folder.spec import ModelSpec


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model. linear: the weight of a linear layer that quantisation would take."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    linear: bool = False

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Chunk:
    """Bytes of a chunk of `tokens` tokens. kept: what its forward pass leaves for the backward pass.

    first: the most that both passes hold, where no gradient exists before; later: where those of all parameters do,
    which are not counted.
    """

    tokens: int
    kept: int
    first: int
    later: int


@dataclass(frozen=True)
class Footprint:
    """parameters, in the model's order; buffers: bytes beside them; size: of an embedding; buckets: bytes of each in
    which gradients travel without DeepSpeed.
    """

    parameters: list[Parameter]
    buffers: int
    size: int
    buckets: list[int]
    chunk: Chunk


class Allocations(TorchDispatchMode):
    """Follows the bytes of all storages that operations make, as long as they live. now, peak: since the start."""

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

    def _see(self, storage, before: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in before:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def footprint(config: RunConfig, spec: ModelSpec, device: str, tokens: int, length: int) -> Footprint:
    """Of the model that a run trains, in chunks of `tokens` tokens of texts of `length`, on cpu, mps or cuda.

    Of a GPU it is what an unpadded pass would keep on a CPU with fused attention: the kernels' own scratch is not seen.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

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
        travelling = in_buckets([p for p in embedder.parameters() if p.requires_grad], BUCKET_BYTES)
        buckets = [sum(p.numel() * p.element_size() for p in bucket) for bucket in travelling]
        chunk = _chunk(embedder, max(length, min(tokens, CHUNK_TOKENS[device])), length, dtype)
    return Footprint(parameters, buffers, embedder.size, buckets, chunk)


def _build(config: RunConfig, spec: ModelSpec) -> Embedder:
    settings, kind, _ = read_settings(spec.base, spec, config.model)
    settings.dtype = torch.float32
    code = {"trust_remote_code": config.model.trust_remote_code}
    backbone = kind.from_config(settings, **code) if kind.__name__ == "AutoModel" else kind(settings)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    layers = dense.build(spec.dense).requires_grad_(config.model.finetune == "full")
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
    """Fake tensors of the CPU in place of meta tensors, which some operations refuse to mix with those of the CPU."""
    made: dict[int, torch.Tensor] = {}  # weights that are tied stay so
    for module in embedder.modules():
        for name, p in module._parameters.items():
            if p is not None:
                new = made.get(id(p))
                new = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad) if new is None else new
                module._parameters[name] = made[id(p)] = new
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def _chunk(embedder: Embedder, tokens: int, length: int, dtype: torch.dtype | None) -> Chunk:
    count = max(1, tokens // length)
    ids, lengths = torch.ones(count * length, dtype=torch.int64), [length] * count
    trained = [p for p in embedder.parameters() if p.requires_grad]
    first = _passes(embedder, ids, lengths, dtype)
    later = _passes(embedder, ids, lengths, dtype)
    for parameter in trained:
        parameter.grad = None
    return Chunk(count * length, first[0], first[1], later[1])


def _passes(embedder: Embedder, ids: torch.Tensor, lengths: list[int], dtype: torch.dtype | None) -> tuple[int, int]:
    """(bytes kept after the forward pass, the most in both passes)."""
    with Allocations() as seen:
        out = embedder(ids, lengths, 0, dtype)
        kept = seen.now
        (out * torch.zeros_like(out)).sum().backward()
        del out
    return kept, seen.peak
