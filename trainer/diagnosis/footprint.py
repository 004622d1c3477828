"""The memory and the work of a model, computed without its weights: its layers are built of tensors without data.

- torch's fake tensors have shapes, types and storage sizes, and every operation runs on these alone (trace.py).
- So parameters are counted, and forward and backward passes followed allocation by allocation, for any family and
  adapter, in a second or two and without memory.
- The code is that of training: packing, pooling, adapters and recomputed blocks are the real ones.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data_prep.common.errors import BadInput
from trainer.config.sections import LoraConfig, RunConfig
from trainer.diagnosis.profile import Profile
from trainer.diagnosis.trace import follow
from trainer.distributed.collectives import in_buckets
from trainer.distributed.device import DTYPES
from trainer.engine.gradient_traffic import BUCKET_BYTES
from trainer.model import adapters, dense_layers
from trainer.model.base_dtype import product_weights, resolve
from trainer.model.build import freeze, read_settings
from trainer.model.embedder import Embedder
from trainer.model_folder.families import FAMILIES
from trainer.model_folder.spec import ModelSpec

TEXTS = 11  # least texts of the traced chunk: what grows with its tokens must be told apart from what does not


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    linear: bool = False  # the frozen weight of a linear layer: quantised by QLoRA
    table: bool = False  # the frozen weight of an embedding
    product: bool = False  # used in products of linear layers only: autocast rounds it first

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
    """The memory and work of a model."""

    parameters: list[Parameter]  # in the model's order
    buffers: int  # bytes of its buffers
    size: int  # of an embedding
    buckets: list[int]  # bytes of each bucket in which gradients travel without DeepSpeed
    attention: int  # numbers of all heads of all layers: a text of n tokens takes 4 n^2 operations for each, forward
    plain: Profile  # a chunk's passes
    recomputed: Profile | None  # the same with recomputed blocks; None: not looked at, or transformers cannot

    def chunk(self, tokens: int, recompute: bool = False) -> Chunk:
        """Returns the memory of a chunk of `tokens` tokens."""
        profile = self.recomputed if recompute else self.plain
        return Chunk(tokens, *(round(part.at(tokens)) for part in (profile.kept, profile.first, profile.later)))


def footprint(
    config: RunConfig, spec: ModelSpec, device: str, tokens: int, length: int, recompute: bool = False,
    whole: bool = False,
) -> Footprint:  # fmt: skip
    """Returns the memory and work of a run's model, from a chunk of about `tokens` tokens in texts of about `length`.

    device: cpu, mps or cuda. A GPU is an unpadded pass on a CPU with fused attention, without the kernels' own memory.
    recompute: trace recomputed blocks as well. whole: trace every block, not some of each kind.
    """
    length = prime(max(5, length))
    texts = prime(max(TEXTS, tokens // length))
    with torch.device("meta"):
        embedder, names, of_block = _build(config, spec, whole)
    with FakeTensorMode(allow_non_fake_inputs=True):
        dtype = DTYPES[config.train.precision]
        half = dtype is not None and (config.model.bits or half_base(config, spec, device))
        _put_on_cpu(embedder, half_linear=bool(half))
        if device == "cpu":
            embedder.pack(torch.device("cpu"))
        blocks = [embedder.backbone.get_submodule(f"{names}.{number}") for number in sorted({*of_block})]
        arguments = (embedder, blocks, of_block, texts * length)
        plain = _profile(*arguments, texts, dtype, recompute=False)
        recomputed = _profile(*arguments, texts, dtype, recompute=True) if recompute else None
    parameters = _of_all_blocks(_parameters(embedder), names, of_block)
    trained = [torch.empty(p.shape, device="meta") for p in parameters if p.trained]
    buckets = [sum(p.numel() * p.element_size() for p in some) for some in in_buckets(trained, BUCKET_BYTES)]
    buffers = sum(b.untyped_storage().nbytes() for b in embedder.buffers())
    attention = _attention(embedder.backbone.config) * (len(of_block) or _layers(embedder.backbone.config))
    return Footprint(parameters, buffers, embedder.size, buckets, attention, plain, recomputed)


def half_base(config: RunConfig, spec: ModelSpec, device: str) -> bool:
    """True where the run will store frozen weights in bf16."""
    compute = DTYPES[config.train.precision]
    return resolve(config.model.base_dtype, torch.device(device), compute, spec.fp32_base) == "bf16"


def prime(number: int) -> int:
    """Returns the largest prime that is not above a number of at least 2."""
    return next(n for n in range(number, 1, -1) if all(n % k for k in range(2, int(n**0.5) + 1)))


def _profile(
    embedder: Embedder, blocks: list[nn.Module], of_block: list[int], tokens: int, texts: int,
    dtype: torch.dtype | None, recompute: bool,
) -> Profile | None:  # fmt: skip
    ids, lengths = torch.ones(tokens, dtype=torch.int64), [tokens // texts] * texts
    if recompute:
        try:
            embedder.recompute()
        except BadInput:
            return None
    return follow(embedder, blocks, of_block, tokens, lambda: embedder(ids, lengths, 0, dtype))


def _build(config: RunConfig, spec: ModelSpec, whole: bool) -> tuple[Embedder, str, list[int]]:
    """Returns an embedder with some blocks of each kind, the name of its list of blocks, and for each block of the
    whole model the place of the one that stands for it; an empty list where every block is there."""
    settings, kind, _ = read_settings(spec.base, spec, config.model)
    settings.dtype = torch.float32
    code = {"trust_remote_code": config.model.trust_remote_code}
    backbone = kind.from_config(settings, **code) if kind.__name__ == "AutoModel" else kind(settings)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    freeze(backbone, config.model.freeze)
    names, of_block = ("", []) if whole or spec.own_code or _by_number(config.model.lora) else _shorten(backbone)
    layers = dense_layers.build(spec.dense).requires_grad_(config.model.finetune == "full")
    embedder = Embedder(backbone, layers, spec.pooling, spec.normalize, config.model.dropout == "model")
    if config.model.finetune != "full":
        lora = adapters.settings_of(backbone, config.model.lora)
        embedder.adapter = adapters.Adapter(adapters.wrap(backbone, lora), spec.base)
    return embedder.train(), names, of_block


def _by_number(lora: LoraConfig) -> bool:
    """True where an adapter may differ from block to block."""
    targets = lora.targets if isinstance(lora.targets, list) else []
    return bool(lora.start) or any(part.isdigit() for target in targets for part in target.split("."))


def _shorten(backbone: nn.Module) -> tuple[str, list[int]]:
    """Leaves the last block and the first two of each kind, of which the second stands for the others; returns the
    list's name and what _build needs. (First and last blocks differ in what their neighbours keep.)"""
    family = FAMILIES.get(backbone.config.model_type)
    names = family.blocks if family else _list_of_blocks(backbone)
    if not names:
        return "", []
    blocks = backbone.get_submodule(names)
    kinds = [_kind(block) for block in blocks]
    of_kind = {kind: [n for n, other in enumerate(kinds) if other == kind] for kind in kinds}
    left = sorted({len(kinds) - 1, *(n for some in of_kind.values() for n in some[:2])})
    if len(left) == len(kinds):
        return names, list(range(len(kinds)))
    stand_in = {kind: some[min(1, len(some) - 1)] for kind, some in of_kind.items()}
    chosen = [n if n in left else stand_in[kind] for n, kind in enumerate(kinds)]
    parent, _, name = names.rpartition(".")
    setattr(backbone.get_submodule(parent), name, nn.ModuleList(blocks[n] for n in left))
    if isinstance(getattr(backbone.config, "layer_types", None), list):  # read by the place of a block
        backbone.config.layer_types = [backbone.config.layer_types[n] for n in left]
    return names, [left.index(n) for n in chosen]


def _list_of_blocks(backbone: nn.Module) -> str:
    """Returns the name of the list that holds a block for every layer of the config; empty if there is none."""
    layers = _layers(backbone.config)
    lists = [n for n, m in backbone.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers > 1]
    return lists[0] if len(lists) == 1 else ""


def _layers(settings) -> int:
    return getattr(settings, "num_hidden_layers", None) or getattr(settings, "num_layers", 0)


def _attention(settings) -> int:
    """Numbers of the heads of one layer."""
    heads = getattr(settings, "num_attention_heads", None) or getattr(settings, "num_heads", 0)
    size = getattr(settings, "head_dim", None) or getattr(settings, "d_kv", None)
    return heads * (size or getattr(settings, "hidden_size", 0) // max(1, heads))


def _kind(block: nn.Module) -> tuple:
    """Returns all that a block's work depends on: modules, shapes, training, and the settings that modules hold."""
    parts = [(name, type(module).__name__) for name, module in block.named_modules()]
    tensors = [(name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters()]
    plain = (str, bool, int, float, tuple)
    values = [
        (name, key, value)
        for name, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, plain) and key != "layer_idx" and not key.startswith("_")
    ]
    return tuple(parts), tuple(tensors), tuple(values)


def _parameters(embedder: Embedder) -> list[Parameter]:
    modules = dict(embedder.backbone.named_modules())
    kinds = {
        f"{name}.weight": type(module) for name, module in modules.items() if not name.endswith(".modules_to_save")
    }
    found, products = [], product_weights(embedder.backbone)
    for name, p in embedder.parameters_by_name().items():
        kind, frozen = kinds.get(name, object), not p.requires_grad
        linear, table = frozen and issubclass(kind, nn.Linear), frozen and issubclass(kind, nn.Embedding)
        found.append(Parameter(name, tuple(p.shape), p.requires_grad, linear, table, p in products))
    return found


def _of_all_blocks(parameters: list[Parameter], names: str, of_block: list[int]) -> list[Parameter]:
    """Puts in the parameters of the blocks that were not built."""
    prefix = f"{names}."
    inside = {n: [p for p in parameters if p.name.startswith(f"{prefix}{n}.")] for n in {*of_block}}
    first = next((i for i, p in enumerate(parameters) if of_block and p.name.startswith(prefix)), len(parameters))
    rest = [p for p in parameters if not (of_block and p.name.startswith(prefix))]
    every = [
        replace(p, name=f"{prefix}{number}.{p.name.removeprefix(f'{prefix}{stand_in}.')}")
        for number, stand_in in enumerate(of_block)
        for p in inside[stand_in]
    ]
    return [*rest[:first], *every, *rest[first:]]


def _put_on_cpu(embedder: Embedder, half_linear: bool) -> None:
    """Replaces meta tensors by fake tensors of the CPU: some operations refuse to mix meta and CPU tensors.

    half_linear: frozen weights of linear layers lie in bf16 (or are quantised), so autocast makes no copy of them.
    """
    replaced: dict[int, torch.Tensor] = {}  # tied weights stay tied
    for module in embedder.modules():
        for name, p in module._parameters.items():
            if p is not None:
                half = half_linear and isinstance(module, nn.Linear) and name == "weight" and not p.requires_grad
                dtype = torch.bfloat16 if half else p.dtype
                new = replaced.get(id(p))
                new = nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad) if new is None else new
                module._parameters[name] = replaced[id(p)] = new
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
