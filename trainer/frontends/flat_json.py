"""A flat config.json (python -m trainer --config config.json), translated into the run file. No torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.paths import expanded, user_path
from trainer.config.loading import load_config
from trainer.config.sections import RunConfig
from trainer.config.spelling import misspelt, respelt
from trainer.config.unknown_keys import Frontend, answer
from trainer.config.yaml_reader import read_values
from trainer.frontends.translation import PER_DEVICE, Entry, Translation

KEYS = {  # key of config.json -> keys of the run file; (): translated by hand
    "model_id": ("model.path",),
    "tokenizer_id": ("model.tokenizer",),
    "device": ("train.device",),
    "dtype": (),
    "train.batch_size": (),
    "train.epochs": ("train.epochs",),
    "train.max_length": ("model.query_max_len", "model.passage_max_len"),
    "train.grad_accum_steps": (),
    "train.steps_per_epoch": ("train.steps_per_epoch",),
    "optim.name": (),
    "optim.lr": ("optim.lr",),
    "optim.weight_decay": ("optim.weight_decay",),
    "optim.warmup_ratio": ("optim.warmup_ratio",),
    "data.pairs_path": (),
    "output.save_dir": (),
    "output.save_name": (),
    "output.save_metrics": (),
}
TEXTS = ("optim.name", "data.pairs_path", "output.save_dir", "output.save_name")
PRECISIONS = {"auto": "fp32", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
OF_KEYS = {ours: name for name, keys in KEYS.items() for ours in keys} | {"data.train": "data.pairs_path"}
PAIRS = "data/pairs.jsonl"  # where config.json names none


def _stated(key: str, value: str | None) -> str:
    """Returns how a key of the run file is stated in config.json."""
    if key == "train.precision":
        key, value = "dtype", next((name for name, ours in PRECISIONS.items() if ours == value), None)
    elif key not in OF_KEYS:
        return f"{key}={'…' if value is None else value} behind the command"
    name = OF_KEYS.get(key, key)
    return f"{name}: {value}" if value else name


IN_JSON = Frontend(_stated, {"batch": "train.batch_size", "accumulation": "train.grad_accum_steps"})


def is_flat(values: dict) -> bool:
    """True if a JSON file holds keys of KEYS and is no run file."""
    own = {key.partition(".")[0] for key in KEYS}
    return bool(own - RunConfig.model_fields.keys() & values.keys()) and not {"output_dir", "loss"} & values.keys()


def load_run_file(path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Loads a run file for commands that take no flat config.json. Raises BadInput, also for a flat one."""
    path = expanded(path)
    if path.endswith(".json") and Path(path).is_file() and is_flat(read_values(Path(path), RunConfig.model_fields)[0]):
        raise BadInput(
            f"{path}: is a flat config.json, which the trainer alone takes: torchrun --nproc-per-node N -m trainer "
            f"--config {path}. Its run leaves a run file in its folder (run.yaml), which every command takes"
        )
    return load_config(path, list(overrides))


def from_json(path: Path, overrides: Iterable[str] = ()) -> Entry | None:
    """Translates a flat config.json; returns None for a run file. Raises BadInput with every problem."""
    path = user_path(path)
    values, lines = read_values(path, [key.partition(".")[0] for key in KEYS])
    if not is_flat(values):
        return None
    run = Translation(str(path))
    given = _flatten(values, path, lines, run)
    if "model_id" not in given:
        run.problems.append(f"{path}: key 'model_id' is missing")

    def origin(key: str) -> str:
        return f"{path}:{lines.get(tuple(key.split('.')), 1)}"

    for key in [key for key in TEXTS if not isinstance(given.get(key, ""), str | int)]:
        run.problems.append(f"{origin(key)}: {key}: must be a text (given: {str(given.pop(key))[:80]})")
    for key, value in given.items():
        for ours in KEYS[key]:
            run.put(ours, value, f"{origin(key)}: {key}", key)
    dtype = given.get("dtype", "auto")
    if str(dtype) not in PRECISIONS:
        run.problems.append(f"{origin('dtype')}: dtype: {dtype!r} is none of {', '.join(PRECISIONS)}")
    run.put("train.precision", PRECISIONS.get(str(dtype), "fp32"), stated="dtype" if "dtype" in given else None)
    if "optim.name" in given:
        run.put("optim.name", str(given["optim.name"]).lower(), f"{origin('optim.name')}: optim.name", "optim.name")
    folder, name = Path(str(given.get("output.save_dir", "runs"))), str(given.get("output.save_name", "run"))
    run.put("output_dir", str(folder / name), stated="output.save_dir")
    if given.get("output.save_metrics") is False:
        run.notes.append("output.save_metrics: false, but a run always writes its metrics")
    sizes = ("train.batch_size", "train.grad_accum_steps")
    numbers = [run.whole(f"{origin(key)}: {key}", given.get(key, n), 1) for key, n in zip(sizes, (PER_DEVICE, 1))]
    run.batch(*numbers, sizes, not given.keys().isdisjoint(sizes))
    datasets = [run.path("data.pairs_path", str(given.get("data.pairs_path", PAIRS)))]
    if "data.pairs_path" not in given:
        run.notes.append(f"no data.pairs_path: {PAIRS}")
    run.dataset("data.pairs_path", datasets)
    run.override(overrides)
    return run.entry(datasets)


def _flatten(values: dict, path: Path, lines: dict, run: Translation) -> dict[str, Any]:
    """Returns key -> value for the keys of KEYS in the file, without null values. Other keys are problems."""
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections and isinstance(value, dict | None):
            flat |= {f"{key}.{name}": inner for name, inner in (value or {}).items()}
        else:
            flat[key] = value
    for key in [key for key in flat if key not in KEYS]:
        line = lines.get(tuple(key.split(".")), 1)
        text = "is a section" if key in sections else _unknown(key, flat[key])
        run.problems.append(f"{path}:{line}: {key}: {text}")
    return {key: value for key, value in flat.items() if key in KEYS and value not in (None, {})}


def _unknown(key: str, value: Any) -> str:
    if near := respelt(key, KEYS) or misspelt(key, KEYS):
        return f"unknown key. Did you mean {near[0]!r}?"
    mend = answer(tuple(key.split(".")), value, (), IN_JSON)
    return f"unknown key. {mend}" if mend else f"unknown key. Known: {', '.join(KEYS)}"
