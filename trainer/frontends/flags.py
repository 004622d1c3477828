"""python -m trainer --model_name_or_path M --train_dataset F.jsonl --output_dir O …: a run by flags. No torch."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput, nearest
from trainer.frontends.translation import PER_DEVICE, Entry, Translation


@dataclass(frozen=True)
class Flag:
    """key: of the run file; None: translated by hand. default: None leaves it to the run file."""

    key: str | None
    default: Any
    about: str


FLAGS = {
    "model_name_or_path": Flag("model.path", None, "model folder or hub id"),
    "train_dataset": Flag(None, None, "records (docs/data.md) or a shard folder; may be repeated"),
    "output_dir": Flag("output_dir", None, "the run directory"),
    "finetune_type": Flag("model.finetune", "qlora", "full, lora or qlora"),
    "batch_size": Flag(None, PER_DEVICE, "rows per device and accumulation step"),
    "gradient_accumulation_steps": Flag(None, 1, "times as many rows in a global batch"),
    "lr": Flag("optim.lr", 1e-4, "learning rate"),
    "epochs": Flag("train.epochs", 2, ""),
    "steps_per_epoch": Flag("train.steps_per_epoch", None, "cut an epoch after so many steps"),
    "neg_nums": Flag("data.max_hard_negatives", 2, "hard negatives of a row, at most"),
    "temperature": Flag("loss.temperature", 0.02, "of InfoNCE"),
    "query_max_len": Flag("model.query_max_len", 256, "tokens"),
    "passage_max_len": Flag("model.passage_max_len", 1024, "tokens"),
    "warmup_proportion": Flag("optim.warmup_ratio", None, "share of the steps"),
    "quantization_bits": Flag("model.quantization_bits", None, "4 or 8: of the frozen base"),
    "lora_r": Flag("model.lora.r", 8, ""),
    "lora_alpha": Flag("model.lora.alpha", 32, ""),
    "lora_dropout": Flag("model.lora.dropout", 0.1, ""),
    "save_on_epoch_end": Flag(None, 1, "1 keeps every epoch's checkpoint, 0 the newest one"),
    "eval_fraction": Flag(None, 0.0, "share of the documents that is kept for evaluation"),
    "seed": Flag("train.seed", None, ""),
}
REQUIRED = ("model_name_or_path", "train_dataset", "output_dir")


@dataclass
class Options:
    """What the trainer's command line says beside the run itself."""

    resume: bool = False
    dry_run: bool = False
    engine: str | None = None
    processes: int | None = None


def add_help(parser: argparse.ArgumentParser) -> None:
    """The flags in the help of the trainer; they are read by from_flags alone."""
    group = parser.add_argument_group(
        "a run by flags, in place of --config", "straight from records; section.key=value changes what has no flag here"
    )
    for name, flag in FLAGS.items():
        default = f" (default {flag.default})" if flag.default is not None else ""
        about = f"{flag.about}{default}".strip()
        group.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, metavar="V", help=about)


def are_flags(argv: list[str]) -> bool:
    """Whether a command line asks for a run by flags, not by a run file nor for help."""
    names = {token.partition("=")[0] for token in argv}
    return names.isdisjoint(("--config", "--help", "-h")) and any(f"--{name}" in names for name in FLAGS)


def beside_a_run_file(given: dict[str, Any]) -> list[str]:
    """A problem for each flag that stands beside --config, whose run file says all. given: what argparse read."""
    found = []
    for name in FLAGS.keys() & given.keys():
        key = FLAGS[name].key
        mend = f"write {key}={given[name]} behind the run file" if key else "leave it out: the run file says it"
        found.append(f"--{name}: is for a run without --config; {mend}")
    return sorted(found)


def from_flags(argv: list[str]) -> tuple[Entry, Options]:
    """The run that flags describe. Raises BadInput with every problem of them."""
    made = Translation("the flags")
    given, options, overrides = _read_flags(argv, made)
    for name in REQUIRED:
        if name not in given:
            made.problems.append(f"--{name}: is missing ({FLAGS[name].about})")
    values = {name: given.get(name, [flag.default])[0] for name, flag in FLAGS.items()}
    bits = values["quantization_bits"]
    if bits is not None:
        values["quantization_bits"] = int(bits) if bits.isdigit() else bits  # the run file's choices are numbers
    if bits is not None and values["finetune_type"] == "lora":
        values["finetune_type"] = "qlora"
        made.notes.append(f"--finetune_type lora on a base of {bits} bits is qlora")
    without = without_default(values["finetune_type"], overrides)
    for name, flag in FLAGS.items():
        if flag.key and values[name] is not None and (name in given or name not in without):
            made.put(flag.key, values[name], f"--{name}", f"--{name}" if name in given else None)
    if made.whole("--save_on_epoch_end", values["save_on_epoch_end"], 0) == 0:
        made.put("checkpoint.keep_epochs", 1, stated="--save_on_epoch_end")
    sizes = ("batch_size", "gradient_accumulation_steps")
    per_device, accumulation = (made.whole(f"--{name}", values[name], 1) for name in sizes)
    made.batch(per_device, accumulation, tuple(f"--{n}" for n in sizes), not given.keys().isdisjoint(sizes))
    eval_fraction = made.share("--eval_fraction", values["eval_fraction"])
    datasets = [Path(text) for text in given.get("train_dataset", [])]
    made.dataset("--train_dataset", datasets)
    made.override(overrides)
    entry = made.entry(datasets, eval_fraction)
    if not entry.needs_shards and "eval_fraction" in given:
        raise BadInput("--eval_fraction: the shards of --train_dataset are split already")
    return entry, options


def without_default(finetune: str, overrides: Iterable[str]) -> tuple[str, ...]:
    """Flags that say nothing unless they are given: there is no adapter, or one to go on from, which has its own."""
    if finetune == "full":
        return ("lora_r", "lora_alpha", "lora_dropout")
    starts = any(text.partition("=")[0] == "model.lora.start" for text in overrides)
    return ("lora_r", "lora_alpha") if starts else ()


def _read_flags(argv: list[str], made: Translation) -> tuple[dict[str, list[str]], Options, list[str]]:
    """(flag -> its values, the trainer's own options, overrides). Problems go to `made`."""
    given: dict[str, list[str]] = {}
    options, overrides, tokens = Options(), [], iter(argv)
    own = {"resume": None, "dry-run": None, "engine": str, "processes": int}
    for token in tokens:
        if not token.startswith("--"):
            overrides.append(token)
            continue
        name, sep, value = token[2:].partition("=")
        if name in ("resume", "dry-run") and not sep:
            options = replace(options, **{name.replace("-", "_"): True})
            continue
        if name not in FLAGS and name not in own:
            made.problems.append(f"--{name}: no such flag.{nearest(name, [*FLAGS, *own])}")
            continue  # its value, if any, is no override either
        value = value if sep else next(tokens, None)
        if value is None or value.startswith("--"):
            made.problems.append(f"--{name}: needs a value")
        elif name == "engine":
            options.engine = value
        elif name == "processes":
            options.processes = made.whole("--processes", value, 1)
        elif name in given and name != "train_dataset":
            made.problems.append(f"--{name}: stands twice; keep one")
        else:
            given.setdefault(name, []).append(value)
    return given, options, [text for text in overrides if "=" in text or not made.problems]
