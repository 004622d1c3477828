"""python -m trainer --model_name_or_path M --train_dataset F.jsonl --output_dir O …: a run by flags. No torch."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.parser import stray_flags
from trainer.config.unknown_keys import BEHIND_A_COMMAND, Frontend, about_flag
from trainer.frontends.translation import PER_DEVICE, Entry, Translation


@dataclass(frozen=True)
class Flag:
    """A flag and the key of the run file that it stands for."""

    key: str | None  # None: translated by hand
    default: Any  # None: the run file's
    help: str


FLAGS = {
    "model_name_or_path": Flag("model.path", None, "model folder or hub id"),
    "train_dataset": Flag(None, None, "records (docs/reference/data.md) or a shard folder; may be repeated"),
    "output_dir": Flag("output_dir", None, "the run directory"),
    "finetune_type": Flag("model.finetune", "qlora", "full, lora or qlora"),
    "batch_size": Flag(None, PER_DEVICE, "rows per device and accumulation step"),
    "gradient_accumulation_steps": Flag(None, 1, "factor of the global batch"),
    "lr": Flag("optim.lr", None, "learning rate (default: by --finetune_type, see docs/reference/run_file.md)"),
    "epochs": Flag("train.epochs", 2, "passes over the data"),
    "steps_per_epoch": Flag("train.steps_per_epoch", None, "end an epoch after so many steps"),
    "neg_nums": Flag("data.max_hard_negatives", 2, "at most so many hard negatives of a row"),
    "temperature": Flag("loss.temperature", 0.02, "temperature of InfoNCE"),
    "query_max_len": Flag("model.query_max_len", 256, "tokens at which a query is truncated"),
    "passage_max_len": Flag("model.passage_max_len", 1024, "tokens at which a passage is truncated"),
    "warmup_proportion": Flag("optim.warmup_ratio", None, "share of the steps in which the learning rate rises"),
    "quantization_bits": Flag("model.quantization_bits", None, "bits of the frozen base, 4 or 8"),
    "lora_r": Flag("model.lora.r", 8, "rank of the adapter"),
    "lora_alpha": Flag("model.lora.alpha", 32, "scale of the adapter is alpha / r"),
    "lora_dropout": Flag("model.lora.dropout", 0.1, "dropout of the adapter"),
    "save_on_epoch_end": Flag(None, 1, "1 keeps every epoch's checkpoint, 0 the newest one"),
    "eval_fraction": Flag(None, 0.0, "share of the documents that is held out for evaluation"),
    "seed": Flag("train.seed", None, "seed of order, drawn positives and dropout"),
}
OWN = ("resume", "dry-run", "engine", "processes")  # the trainer's own options
REQUIRED = ("model_name_or_path", "train_dataset", "output_dir")
SIZES = ("batch_size", "gradient_accumulation_steps")
OF_KEYS = {flag.key: name for name, flag in FLAGS.items() if flag.key} | {"data.train": "train_dataset"}


def _stated(key: str, value: str | None) -> str:
    """Returns how a key of the run file is stated among flags."""
    flag = f"--{OF_KEYS[key]} {value or ''}".strip() if key in OF_KEYS else None
    return flag or BEHIND_A_COMMAND.write(key, value)


AS_FLAGS = Frontend(_stated, dict(zip(("batch", "accumulation"), (f"--{name}" for name in SIZES))))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of FLAGS. Each collects every value given to it, None where the value is missing."""
    group = parser.add_argument_group(
        "a run by flags, in place of --config",
        "straight from records; section.key=value changes what has no flag here",
    )
    for name, flag in FLAGS.items():
        default = f" (default {flag.default})" if flag.default is not None else ""
        text = f"{flag.help}{default}".strip()
        group.add_argument(f"--{name}", dest=name, action="append", nargs="?", metavar="V", help=text)


def stated_flags(args: argparse.Namespace) -> dict[str, list[str | None]]:
    """Returns the values of every flag of FLAGS that the command line states."""
    return {name: values for name in FLAGS if (values := getattr(args, name)) is not None}


def beside_a_run_file(args: argparse.Namespace) -> list[str]:
    """Returns a problem for each flag beside --config, whose run file states everything."""
    problems = []
    for name, values in stated_flags(args).items():
        key = FLAGS[name].key
        mend = f"write {key}={values[-1]} behind the run file" if key else "leave it out: the run file says it"
        problems.append(f"--{name}: is for a run without --config; {mend}")
    return sorted(problems)


def from_flags(args: argparse.Namespace) -> Entry:
    """Translates the flags into a run file. Raises BadInput with every problem."""
    run = Translation("the flags")
    stated = _checked(args, run)
    values = {name: stated.get(name, [flag.default])[0] for name, flag in FLAGS.items()}
    bits = values["quantization_bits"]
    if bits is not None:
        values["quantization_bits"] = int(bits) if bits.isdigit() else bits  # the run file's choices are numbers
    if bits is not None and values["finetune_type"] == "lora":
        values["finetune_type"] = "qlora"
        run.notes.append(f"--finetune_type lora on a base of {bits} bits is qlora")
    overrides = [*args.overrides, *(text for text in args.unknown if not text.startswith("-"))]
    without = without_default(values["finetune_type"], overrides)
    for name, flag in FLAGS.items():
        if flag.key and values[name] is not None and (name in stated or name not in without):
            run.put(flag.key, values[name], f"--{name}", f"--{name}" if name in stated else None)
    if run.whole("--save_on_epoch_end", values["save_on_epoch_end"], 0) == 0:
        run.put("checkpoint.keep_epochs", 1, stated="--save_on_epoch_end")
    per_device, accumulation = (run.whole(f"--{name}", values[name], 1) for name in SIZES)
    run.batch(per_device, accumulation, tuple(f"--{name}" for name in SIZES), not stated.keys().isdisjoint(SIZES))
    eval_fraction = run.share("--eval_fraction", values["eval_fraction"])
    datasets = [run.path("--train_dataset", text) for text in stated.get("train_dataset", [])]
    run.dataset("--train_dataset", datasets)
    run.override([text for text in overrides if "=" in text or not run.problems])  # not the value of an unknown flag
    entry = run.entry(datasets, eval_fraction)
    if not entry.needs_shards and "eval_fraction" in stated:
        raise BadInput("--eval_fraction: the shards of --train_dataset are split already")
    if eval_fraction and entry.config.data.eval is False:
        kept = f"--eval_fraction {eval_fraction:g} keeps documents out of training"
        entry.notes.append(f"{kept}, and data.eval is off: nothing is evaluated on them")
    return entry


def _checked(args: argparse.Namespace, run: Translation) -> dict[str, list[str]]:
    """Returns the values of the stated flags, without flags that lack one. Problems go to `run`."""
    stated = stated_flags(args)
    lacking = [name for name, values in stated.items() if None in values]
    twice = [name for name, values in stated.items() if len(values) > 1 and name != "train_dataset"]
    unknown, flags = [text for text in args.unknown if text.startswith("-")], [f"--{name}" for name in (*FLAGS, *OWN)]
    run.problems += [about_flag(text, flags, AS_FLAGS) for text in unknown]
    run.problems += [] if unknown else stray_flags(args.overrides, flags)  # else they may be its value
    run.problems += [f"--{name}: needs a value" for name in lacking]
    run.problems += [f"--{name}: stands twice; keep one" for name in twice]
    for name in (name for name in REQUIRED if name not in stated):
        run.problems.append(f"--{name}: is missing ({FLAGS[name].help})")
        if key := FLAGS[name].key:
            run.put(key, f"--{name}")  # else the run file would lack it too
    return {name: values for name, values in stated.items() if name not in lacking}


def without_default(finetune: str, overrides: Iterable[str]) -> tuple[str, ...]:
    """Returns the flags that count only if stated: there is no adapter, or the adapter to start from decides them."""
    if finetune == "full":
        return ("lora_r", "lora_alpha", "lora_dropout")
    starts = any(text.partition("=")[0] == "model.lora.start" for text in overrides)
    return ("lora_r", "lora_alpha") if starts else ()
