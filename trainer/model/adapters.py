"""Adapters on a frozen base: LoRA, rsLoRA and DoRA, by peft. Only this file imports peft.

peft wraps the layers of the base in place, so packing, pooling and the engines see the same model with a few more
parameters, and all others frozen.
"""

import json
import re
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_prep.common.console import say
from data_prep.common.errors import BadInput, first_line
from data_prep.common.files import check
from trainer.config.sections import LoraConfig
from trainer.distributed.device import deepspeed_looks_at
from trainer.model import quantization
from trainer.model.loading import Sources
from trainer.model_folder.families import family_of
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weights_sha256

BASE_HASH = "base_sha256"  # key in the header of the weights: hash of the base's weights, see folder.weights_sha256
_PREFIX = "base_model.model."  # of a parameter in peft's files
# peft writes a DoRA magnitude without ".weight", and reads it with or without; transformers 5.23 reads it with only.
_FILE_NAME = re.compile(r"\.lora_magnitude_vector$")
_COPY = ".modules_to_save.default."  # in the name of a parameter of a copied module
# Parts of a model for another task (a language model, a classifier, the T5 with its decoder): no embedding sees them.
_HEADS = ("lm_head", "score", "classifier", "qa_outputs", "decoder")


class Adapter:
    """The adapter of a backbone."""

    def __init__(self, model, base: str):
        """model: peft's. base: path or hub id of the base, as the adapter's files name it."""
        self.model, self.base = model, base
        self.base_sha256: str | None = None
        # Frozen tensors of the base that the adapter's own file holds (peft saves the embeddings of an adapted or
        # resized embed_tokens), by their names in it: they take the place of the base's, and are written again.
        self.of_base: dict[str, Tensor] = {}

    @property
    def dropout(self) -> bool:
        return self.model.peft_config["default"].lora_dropout > 0

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes adapter_model.safetensors and adapter_config.json, the same bytes for the same weights: CPU tensors by
        the backbone's parameter names."""
        named = {_PREFIX + name: tensor for name, tensor in weights.items()}
        state = _peft().get_peft_model_state_dict(self.model, state_dict=named, save_embedding_layers=False)
        state = {_FILE_NAME.sub(r"\g<0>.weight", name): t.contiguous() for name, t in state.items()} | self.of_base
        facts = {"format": "pt"} | ({BASE_HASH: self.base_sha256} if self.base_sha256 else {})
        save_file(state, folder / ADAPTER_WEIGHTS, metadata=facts)
        _sort_header(folder / ADAPTER_WEIGHTS)
        values = self.model.peft_config["default"].to_dict()
        values |= {"inference_mode": True, "base_model_name_or_path": self.base}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def read(self, folder: Path, sources: Sources) -> None:
        """Loads the weights of an adapter of the same shape. Raises BadInput for another."""
        backbone = self.model.get_base_model()
        weights = {f"{_PREFIX}{name}": tensor for name, tensor in _own(load_file(folder / ADAPTER_WEIGHTS), backbone)}
        check(_of_other_tokens(folder, weights, backbone))
        for name, parameter in self.model.named_parameters():
            if name in weights and parameter in sources:
                sources.make_real(parameter)  # to be written to
        try:
            keys = _peft().set_peft_model_state_dict(self.model, weights)
        except (RuntimeError, ValueError) as error:  # other sizes
            reason = str(error).splitlines()[-1].strip()
            raise BadInput(f"{folder}: is an adapter of another shape ({reason})") from None
        mismatched = [name for name in keys.unexpected_keys if "pooler." not in name]  # poolers are not loaded
        mismatched += [name for name in keys.missing_keys if ".lora_" in name]
        if mismatched:
            raise BadInput(f"{folder}: is an adapter of other layers, {mismatched[0]} is on one side only")
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        self.of_base = {name: tensor for name, tensor in weights.items() if name in frozen}


def _of_other_tokens(folder: Path, weights: dict[str, Tensor], backbone: nn.Module) -> list[str]:
    """Returns a problem if an adapter's file holds embeddings of more or fewer tokens than its base has."""
    try:
        embedding = backbone.get_input_embeddings()
    except NotImplementedError:  # a folder's own code need not say
        return []
    name = next(name for name, module in backbone.named_modules() if module is embedding)
    rows = embedding.weight.shape[0]
    stored = [one for key, one in weights.items() if key.startswith(f"{_PREFIX}{name}.") and ".lora_" not in key]
    other = next((len(one) for one in stored if one.ndim == 2 and len(one) != rows), None)
    if other is None:
        return []
    return [
        f"{folder}: holds embeddings of {other} tokens, its base has {rows}: tokens were added to the base. Make a "
        f"model of both with the adapter's tokenizer: model.resize_token_embeddings({other}), load it with peft, "
        "merge_and_unload(), save_pretrained; and set model.path to that folder"
    ]


def _own(weights: dict[str, Tensor], backbone: nn.Module):
    """Yields (name in the backbone, tensor) of an adapter's file. The file of a model with a head names the transformer
    in it (`model.layers…`), and may hold the head, which no embedding sees."""
    parts = dict(backbone.named_children())
    for name, tensor in weights.items():
        name = _inner_name(name.removeprefix(_PREFIX), backbone)
        part = name.partition(".")[0]
        if part in parts or part not in _HEADS:
            yield name, tensor


def _inner_name(name: str, backbone: nn.Module) -> str:
    """Returns the name of a module or tensor without that of the transformer in a model with a head."""
    outer = getattr(backbone, "base_model_prefix", "")
    return name.removeprefix(f"{outer}.") if outer and outer not in dict(backbone.named_children()) else name


def _sort_header(path: Path) -> None:
    """Sorts the header, which safetensors writes in any order, so that equal weights are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(size)), sort_keys=True, separators=(",", ":")).encode().ljust(size)
        assert len(header) == size, "the same header in another order"
        file.seek(8)
        file.write(header)


def attach(backbone: nn.Module, config: LoraConfig, base: str, seed: int, sources: Sources) -> Adapter:
    """Wraps layers of the backbone and freezes the rest. Raises BadInput for targets that do not exist.
    seed: of the adapter's first values, the same on every engine. sources: of the backbone's numbers."""
    settings = settings_of(backbone, config)
    _make_real(backbone, settings, sources)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = Adapter(wrap(backbone, settings), base)
    if config.start:
        adapter.read(Path(config.start), sources)
    return adapter


def _make_real(backbone: nn.Module, settings, sources: Sources) -> None:
    """Fills the weights that peft copies or computes with while it wraps the backbone."""
    computes = _computes_start(settings)
    copied = settings.modules_to_save or []
    for name, module in backbone.named_modules():
        if computes or any(_among(target, [name]) for target in copied):
            for parameter in module.parameters():
                if parameter in sources:
                    sources.make_real(parameter)


def _computes_start(settings) -> bool:
    """True where peft computes an adapter's first numbers from the base, and may change that (PiSSA and others)."""
    return settings.init_lora_weights not in (True, False, "gaussian", "orthogonal")


def settings_of(backbone: nn.Module, config: LoraConfig):
    """peft's description of the adapter."""
    if config.start:
        settings = _read_settings(config.start, backbone)
        settings.lora_dropout = config.dropout
    else:
        settings = _peft().LoraConfig(
            task_type="FEATURE_EXTRACTION", r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout,
            target_modules=targets(backbone, config), use_rslora=config.rslora, use_dora=config.dora,
        )  # fmt: skip
    settings.base_model_name_or_path = backbone.name_or_path
    return settings


def _read_settings(folder: str, backbone: nn.Module):
    """Reads an adapter's settings, of any task, for the transformer without a head."""
    settings = _peft().LoraConfig.from_pretrained(folder)
    settings.task_type, settings.inference_mode = "FEATURE_EXTRACTION", False
    if isinstance(settings.target_modules, (list, set)):
        settings.target_modules = {_inner_name(name, backbone) for name in settings.target_modules}
    for patterns in ("rank_pattern", "alpha_pattern"):
        named = {_inner_name(name, backbone): value for name, value in (getattr(settings, patterns) or {}).items()}
        setattr(settings, patterns, named)
    names = [name for name, _ in backbone.named_modules()]
    asked = [_inner_name(name, backbone) for name in settings.modules_to_save or []]
    kept = [name for name in asked if _among(name, names)]
    settings.modules_to_save = kept or None
    return settings


def load(backbone: nn.Module, folder: Path) -> Adapter:
    """Wraps the backbone in the adapter of a folder. Raises BadInput for an adapter of other layers."""
    settings = _read_settings(str(folder), backbone)
    adapter = Adapter(wrap(backbone, settings), backbone.name_or_path)
    adapter.read(folder, Sources(reads=True))
    return adapter


def _peft():
    deepspeed_looks_at("cuda" if torch.cuda.is_available() else "cpu")  # peft imports it
    import peft

    return peft


def wrap(backbone: nn.Module, settings):
    """Returns peft's model of the backbone, whose layers it wraps in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's calls of transformers
        try:
            return _peft().get_peft_model(backbone, settings)
        except ValueError as error:  # targets of which the model has none
            reason = first_line(error)
            raise BadInput(f"the adapter does not fit a {backbone.config.model_type} ({reason})") from None


def targets(backbone: nn.Module, config: LoraConfig) -> list[str] | str:
    """Returns the names of the linear layers that get adapters, or all-linear."""
    # bitsandbytes' layers are nn.Linear as well
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    family = family_of(backbone)
    if config.targets is None:
        default = family.targets if family else "all-linear"
        return default if isinstance(default, str) else [n for n in default if _among(n, linear)]
    if config.targets == "all-linear":
        return config.targets
    missing = [target for target in config.targets if not _among(target, linear)]
    if missing:
        known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        raise BadInput(f"model.lora.targets: no linear layer is called {', '.join(missing)}; there are {known}")
    return config.targets


def _among(target: str, names: list[str]) -> bool:
    """peft's rule: a name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def measure_rows(backbone: nn.Module, sources: Sources) -> None:
    """Sets the trained lengths of a new DoRA to those of the base's rows as the run stores them, so that it starts as
    the base (Liu et al. 2024, arXiv:2402.09353, section 4.1). Only the rank that reads the weights does."""
    if not sources.reads:
        return
    for module in backbone.modules():
        for length in getattr(module, "lora_magnitude_vector", {}).values():
            base = module.get_base_layer().weight
            weight = sources.read(base).to(sources.dtype_of(base)).float()
            length.weight.data.copy_(_row_lengths(weight, length))


def is_dropout(name: str) -> bool:
    """True for the name of an adapter's dropout module."""
    return ".lora_dropout." in name


def recorded_base(folder: Path) -> str | None:
    """Returns the hash of the base that an adapter was trained on; None where the adapter has none."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        return (file.metadata() or {}).get(BASE_HASH)


def check_base(folder: Path, base: str, sha256: str) -> None:
    """Raises BadInput where the adapter in `folder` was trained on another base than the one with this hash."""
    recorded = recorded_base(folder)
    if recorded not in (None, sha256):
        raise BadInput(
            f"{folder}: was trained on another base: the weights in {base} hash to {sha256[:16]}…, "
            f"the adapter records {recorded[:16]}…"
        )


def check_base_of(adapter: Path, base: Path) -> None:
    """Raises BadInput where the adapter records another base; says where it records none."""
    if recorded_base(adapter) is None:
        say(f"{adapter} records no hash of its base: whether {base} is the right one was not checked")
    else:
        check_base(adapter, str(base), weights_sha256(base))


def ends(adapter: Adapter) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
    """Returns (parameter, its numbers where the model is the base, its numbers now) for all that an adapter's scale
    decides. Raises BadInput for an adapter that holds more than its scale reaches.

    A stays. B goes from zeros. The trained lengths of a DoRA go from those of the base's rows: with its own lengths and
    B of zeros the model would not be the base. Copies of whole modules go from the base's own.
    """
    backbone = adapter.model.get_base_model()
    named, lengths = dict(backbone.named_parameters()), _base_lengths(backbone)
    begun: dict[str, Tensor] = {}
    unknown = sorted(adapter.of_base)
    for name, parameter in named.items():
        if not parameter.requires_grad or ".lora_A." in name or ".lora_embedding_A." in name:
            continue
        if ".lora_B." in name or ".lora_embedding_B." in name:
            begun[name] = torch.zeros((), device=parameter.device).expand(parameter.shape)
        elif parameter in lengths:
            begun[name] = lengths[parameter]
        elif _COPY in name:
            begun[name] = named[name.replace(_COPY, ".original_module.")].data
        else:
            unknown.append(name)
    if _computes_start(adapter.model.peft_config["default"]):
        unknown.append("weights of the base that its start has changed (init_lora_weights)")
    if unknown:
        raise BadInput(
            f"TUNED: its adapter holds more than a scale reaches, {unknown[0]}; merge it (python -m trainer.merge), "
            "and blend the merged model"
        )
    return [(named[name], zero, named[name].data.clone()) for name, zero in begun.items()]


def _base_lengths(backbone: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Returns the trained lengths of a DoRA, each with the lengths of its base's rows."""
    return {
        length.weight: _row_lengths(quantization.weights_of(module.get_base_layer()), length)
        for module in backbone.modules()
        for length in getattr(module, "lora_magnitude_vector", {}).values()
    }


def _row_lengths(weight: Tensor, length: nn.Module) -> Tensor:
    return torch.linalg.vector_norm(weight.T if length.fan_in_fan_out else weight, dim=1)


def merged(adapter: Adapter) -> nn.Module:
    """Returns the backbone with the adapter added to its weights, as a plain model."""
    return adapter.model.merge_and_unload(safe_merge=True)
