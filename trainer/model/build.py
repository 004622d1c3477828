"""Building an embedder from a model folder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from data_prep.common.errors import BadInput
from trainer.config.sections import FreezeConfig, ModelConfig
from trainer.model import adapters, base_dtype, dense_layers, quantization
from trainer.model.embedder import Embedder
from trainer.model.loading import Sources, load
from trainer.model.tokenizer import check_vocabulary, eos_notes, load_tokenizer, padding_notes, prompt_notes
from trainer.model_folder.families import FAMILIES, family_of
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import TRUST, ModelSpec, read_spec


def load_embedder(
    config: ModelConfig,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    spec: ModelSpec | None = None,
    base: str = "fp32",
    sources: Sources | None = None,
):
    """Loads (Embedder in fp32 on the CPU, tokenizer, ModelSpec, untrained) from a folder or hub id. Raises BadInput.

    checkpoint: folder of the trained weights to resume from; everything else still comes from `config`. device, dtype:
    of a quantised base, which cannot move later. seed: of a new adapter. spec: of the folder, if it was read already.
    base: how frozen weights are stored, fp32 or bf16 (base_dtype.py). sources: takes the numbers of the backbone, which
    is hollow until an engine fills it (loading.py); None loads them at once.
    untrained: tensors by name of a pooler that no pooling here uses, exported again so that the folder is complete.
    """
    spec = spec or read_spec(config, fetch(config.path, config.trust_remote_code))
    tokenizer = load_tokenizer(config, spec.path)
    spec.notes.extend(
        [
            *eos_notes(tokenizer, spec),
            *padding_notes(tokenizer, config.tokenizer or spec.path),
            *prompt_notes(tokenizer, spec),
        ]
    )
    embedder, untrained = build_embedder(spec, config, checkpoint, device, dtype, seed, base, sources)
    if config.tokenizer:
        check_vocabulary(tokenizer, embedder.backbone, config)
    return embedder, tokenizer, spec, untrained


def build_embedder(
    spec: ModelSpec,
    config: ModelConfig,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    base: str = "fp32",
    sources: Sources | None = None,
) -> tuple[Embedder, dict[str, Tensor]]:
    """Builds (Embedder, untrained) from a ModelSpec; see load_embedder."""
    adapted = spec.is_adapter or config.finetune != "full"
    source = spec.base if adapted else checkpoint or spec.path
    quantised = quantization.arguments(spec.bits, dtype, device or torch.device("cpu")) if spec.bits else {}
    wanted = None if spec.bits else sources  # quantised while it is read
    sources = sources or Sources(reads=True)
    backbone = _load_backbone(source, spec, config, quantised, wanted)
    pooler, untrained = getattr(backbone, "pooler", None), {}
    if pooler is not None:
        untrained = {} if spec.bits else _numbers(pooler, sources)
        backbone.pooler = None
    layers = dense_layers.load(spec.dense, None if adapted else checkpoint).requires_grad_(not adapted)
    embedder = Embedder(backbone, layers, spec.pooling, spec.normalize, config.dropout == "model", spec.pool_prompt)
    embedder.sources = sources
    if spec.bits:
        layers.to(device or torch.device("cpu"))  # device of the base
        embedder.quantised = quantization.layers(backbone)
    if spec.is_adapter:
        embedder.adapter = adapters.load(backbone, Path(spec.path))
    elif config.finetune != "full":
        embedder.adapter = adapters.attach(backbone, config.lora, _lasting_name(config.path), seed, sources)
        if checkpoint:
            embedder.adapter.read(checkpoint, sources)
    freeze(backbone, config.freeze)
    if base == "bf16":
        embedder.rounded = base_dtype.round_base(backbone, sources)
    if config.finetune == "lora" and not config.lora.start and not checkpoint:
        adapters.measure_rows(backbone, sources)
    return embedder.train(), untrained


def _numbers(pooler: nn.Module, sources: Sources) -> dict[str, Tensor]:
    """Returns a pooler's tensors by name, on the rank that reads weights."""
    kept = pooler.state_dict(keep_vars=True) if sources.reads else {}
    return {f"pooler.{name}": sources.read(t).detach().float().clone() for name, t in kept.items()}


def _load_backbone(source, spec: ModelSpec, config: ModelConfig, quantised: dict, sources: Sources | None) -> nn.Module:
    """Loads the transformer in fp32 (or quantised), or its shapes where `sources` takes the numbers. Raises BadInput
    where a tensor is missing."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # one per rank, for seconds of work
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing and unexpected tensors are checked here
    try:
        settings, kind, remote = read_settings(source, spec, config)
        family = FAMILIES.get(settings.model_type)
        code = {"trust_remote_code": config.trust_remote_code} if kind is transformers.AutoModel else {}
        arguments = {"config": settings, "dtype": torch.float32, "output_loading_info": True, **code, **quantised}
        backbone, loading = load(kind, source, sources, spec.own_code, arguments)
    except Exception as error:  # whatever a damaged folder makes the library raise is the folder's fault
        raise BadInput(f"model.path: {source} cannot be loaded ({type(error).__name__}: {error})") from None
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(k for k in [*loading["missing_keys"], *map(str, loading["mismatched_keys"])] if "pooler." not in k)
    if missing:  # they would be random
        raise BadInput(f"model.path: {source} lacks {len(missing)} tensors of the model, among them {missing[0]}")
    if any("pooler." in key for key in loading["missing_keys"]):  # random numbers, which nothing uses: never exported
        backbone.pooler = None
    strange = [k for k in loading["unexpected_keys"] if remote and f"{family.blocks}." in k]
    if strange:
        raise BadInput(
            f"model.path: {source} holds {len(strange)} tensors that the family {settings.model_type} does not know, "
            f"among them {strange[0]}: its own code is needed: {TRUST}"
        )
    return backbone


def read_settings(source, spec: ModelSpec, config: ModelConfig):
    """Returns (transformers' config of a folder, the class of its model, True where its own code is not run)."""
    import transformers

    settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    remote = bool(getattr(settings, "auto_map", None)) and not config.trust_remote_code
    if remote:
        del settings.auto_map  # the folder that we write holds no code
    if spec.bidirectional is not None and spec.bidirectional != (not getattr(settings, "is_causal", True)):
        settings.is_causal = not spec.bidirectional
    family = None if spec.own_code else FAMILIES.get(settings.model_type)
    return settings, getattr(transformers, family.model_class if family else "AutoModel"), remote


def _lasting_name(path: str) -> str:
    """Returns the name of the base in an adapter's files: the hub id, or the absolute path of a folder."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def freeze(backbone: nn.Module, config: FreezeConfig) -> None:
    """Excludes parts of the backbone from training; read_spec has checked that they exist."""
    if config == FreezeConfig():
        return
    family = family_of(backbone)
    parts = [backbone.get_submodule(name) for name in family.embeddings] if config.embeddings else []
    for part in [*parts, *backbone.get_submodule(family.blocks)[: config.layers]]:
        part.requires_grad_(False)


def count_parameters(embedder: Embedder) -> tuple[int, int]:
    """Counts (trained, all) numbers in the model, also where an engine or quantisation has changed their tensors."""
    counts = {True: 0, False: 0}
    for parameter in embedder.parameters():
        state = getattr(parameter, "quant_state", None)  # 4-bit: two numbers in a byte
        whole = state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())
        counts[parameter.requires_grad] += whole
    return counts[True], counts[True] + counts[False]
