"""The run file: every fact that decides what is learnt. Topology is the launcher's. Never imports torch."""

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.problems import BadInput, nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        """`epochs: yes` would be read as 1: YAML's truth values are numbers to Python."""
        if isinstance(values, dict):
            for key, value in values.items():
                field = cls.model_fields.get(key)
                if isinstance(value, bool) and field and not _may_be_bool(field.annotation):
                    raise ValueError(f"{key} is {str(value).lower()}, which is no number or text")
        return values


def _may_be_bool(annotation: Any) -> bool:
    return bool in (annotation, *getattr(annotation, "__args__", ()))


class ModelConfig(Section):
    """What embeds. None means: what the model folder's own sentence-transformers files say."""

    path: str = Field(min_length=1)
    pooling: Literal["mean", "cls", "last"] | None = None
    normalize: bool | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    query_max_len: int | None = Field(None, ge=4)
    passage_max_len: int | None = Field(None, ge=4)
    dropout: Literal[0, "model"] = 0  # "model": as the folder was trained
    trust_remote_code: bool = False


class DataConfig(Section):
    """What is read. eval: a shard folder or a retrieval set; None takes the eval split of `train`, if there is one."""

    train: str = Field(min_length=1)
    eval: str | None = None
    max_hard_negatives: int | None = Field(None, ge=0)  # per row; None takes all
    last_batch: Literal["keep", "drop"] = "keep"


class LossConfig(Section):
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4) over the documents that `negatives` names."""

    temperature: float = Field(0.05, gt=0)
    negatives: Literal["batch", "device"] = "batch"
    mask_duplicates: bool = True


class OptimConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); biases and norms take no weight decay."""

    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float | None = Field(1.0, gt=0)


class TrainConfig(Section):
    """batch_size is global: rows per optimizer step over all ranks. micro_batch_tokens is the memory knob, per rank."""

    batch_size: int = Field(64, ge=2)
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    micro_batch_tokens: int = Field(16384, ge=64)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)  # lines on the screen; logs.jsonl holds every step


class RunConfig(Section):
    output_dir: str = Field(min_length=1)
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a float (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen: dict[Any, int] = {}
        self.flatten_mapping(node)  # merge keys (<<)
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                raise yaml.YAMLError(f"line {line}: key {key!r} stands here and on line {seen[key]}; keep one")
            seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _lines(node: yaml.Node | None, prefix: tuple = ()) -> dict[tuple, int | str]:
    """Key path -> line of the run file, so that a problem can say where it stands."""
    found: dict[tuple, int | str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value)
            found[path] = key.start_mark.line + 1
            found |= _lines(value, path)
    return found


def _read(path: Path) -> tuple[dict, dict[tuple, int | str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such run file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    lines: dict[tuple, int | str] = {}
    try:
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_unique)
            with suppress(yaml.YAMLError):  # most JSON is YAML: good enough to find lines
                lines = _lines(yaml.compose(text, Loader=_Loader))
        else:
            values = yaml.load(text, Loader=_Loader)  # a SafeLoader
            lines = _lines(yaml.compose(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must be a mapping with the keys {', '.join(RunConfig.model_fields)}")
    return {key: {} if value is None else value for key, value in values.items()}, lines  # `train:` left empty


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice; keep one")
    return values


def _override(values: dict, text: str) -> str | None:
    """Sets one key=value in place; returns a problem or None."""
    key, sep, raw = text.partition("=")
    if not sep or not key:
        return f"{text!r}: an override is written key=value, e.g. optim.lr=1e-4"
    try:
        value = yaml.load(raw, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        return f"{text!r}: the value is not valid YAML ({error})"
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            return f"{text!r}: {parent} is not a section of the run file"
    node[last] = value
    return None


def _known_path(loc: tuple) -> tuple[tuple, type[BaseModel]]:
    """The part of a pydantic location that names keys (indices and union branches follow it), and its section."""
    section: type[BaseModel] = RunConfig
    for depth, key in enumerate(loc):
        field = section.model_fields.get(key)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return loc[: depth + 1], section
        if depth + 1 < len(loc):
            section = inner
    return loc, section


def _problem(error: dict, where: str, lines: dict[tuple, int | str]) -> tuple[str, str]:
    """(key, one line for people) of a pydantic error."""
    path, section = _known_path(error["loc"])
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    place = line if isinstance(line, str) else f"{where}:{line}" if line else where
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        known = section.model_fields
        return key, f"{place}: unknown key {key!r}.{nearest(str(path[-1]), known)} Known here: {', '.join(known)}"
    if error["type"] == "missing" and path == error["loc"]:
        return key, f"{place}: key {key!r} is missing"
    given = json.dumps(error["input"], default=str, ensure_ascii=False)
    if error["type"] == "model_type":
        return key, f"{place}: {key} is a section: write {key}: {{key: value}} (given: {given[:80]})"
    text = error["msg"].removeprefix("Value error, ")
    return key, f"{place}: {key}: {text[0].lower()}{text[1:]} (given: {given[:80]})"


def check_packages() -> None:
    """Raises BadInput where a folder named like one of our packages (in the working folder, say) hides it."""
    from importlib.util import find_spec

    home = Path(__file__).resolve().parent.parent
    for name in ("launch", "trainer", "data_prep"):
        found = find_spec(name)
        where = Path(next(iter(found.submodule_search_locations or []), "nowhere")).resolve() if found else None
        if where != home / name:
            raise BadInput(f"package {name!r} of embedfleet is shadowed by {where}; run from another folder")


def load_config(path: str | Path, overrides: list[str] | tuple = ()) -> RunConfig:
    """Reads a run file (.yaml, .yml or .json) and `section.key=value` overrides.

    Raises BadInput with every problem found: file, line, key and the nearest known key.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise BadInput(f"{path}: a run file ends in .yaml, .yml or .json")
    values, lines = _read(path)
    problems = [problem for text in overrides if (problem := _override(values, text))]
    for text in overrides:  # a problem with these is not the file's
        lines[tuple(text.partition("=")[0].split("."))] = f"override {text}"
    return parse_config(values, str(path), lines, problems)


def parse_config(
    values: dict, where: str, lines: dict[tuple, int | str] | None = None, problems: list[str] | None = None
):
    """Validates nested values into a RunConfig; `where` names their origin in messages."""
    problems = problems if problems is not None else []
    try:
        config = RunConfig.model_validate(values, strict=False)
    except ValidationError as error:
        # A failed union reports every branch: one line per key is what a reader can use.
        unique: dict[str, str] = {}
        for entry in error.errors():
            unique.setdefault(*_problem(entry, where, lines or {}))
        raise BadInput(problems + list(unique.values())) from None
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        problems.append(f"{where}: optim.betas must lie in [0, 1) (given: {list(config.optim.betas)})")
    if problems:
        raise BadInput(problems)
    return config


def parse_section(name: str, values: dict, where: str):
    """One section of the run file from plain values, e.g. a command's flags. Raises BadInput like load_config."""
    whole = {"output_dir": "unused", "model": {"path": "unused"}, "data": {"train": "unused"}, name: values}
    return getattr(parse_config(whole, where), name)


def lr_factor(step: int, total: int, optim: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`, as a share of optim.lr.

    Rises linearly over round(warmup_ratio * total) steps (the first step already learns), then falls to 0 after the
    last step, linearly or along half a cosine. A pure function: there is no scheduler state to lose.
    """
    warmup = round(optim.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match optim.schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case _:
            return 1.0
