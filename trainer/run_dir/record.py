"""run.json: how a run was started, and whether it can be resumed."""

import importlib.metadata
import json
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.loading import parse_config
from trainer.config.sections import RunConfig
from trainer.planner.plan import PLAN_VERSION

PACKAGES = (
    "embedfleet", "torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "datasets", "pyarrow",
    "safetensors",
)  # fmt: skip
# Keys that may change when a run is resumed: they change speed and memory, never the mathematics.
# (The path of the data may change too: the fingerprint says what they are.)
FREE = (
    "output_dir", "run_name", "data.train", "data.allow", "train.micro_batch_tokens",
    "train.gradient_checkpointing", "train.gradient_reduction", "train.device", "train.log_every",
    "train.timeout_minutes", "train.max_skipped_steps", "train.callbacks", "checkpoint.every_steps",
    "checkpoint.every_minutes", "checkpoint.keep_steps", "checkpoint.keep_epochs", "watch.keep_last", "watch.tolerance",
    "watch.metrics", "watch.blend",
)  # fmt: skip


def describe_run(config: RunConfig, topology: dict, fingerprint: str, plan: dict, base_dtype: str = "fp32") -> dict:
    """Returns the content of run.json. It holds no environment: secrets live there. base_dtype: fp32 or bf16, as
    model.base_dtype was resolved."""
    return {
        "config": config.model_dump(mode="json"),
        "topology": topology,
        "base_dtype": base_dtype,
        "plan": plan,
        "data_fingerprint": fingerprint,
        "versions": versions(),
        "platform": platform.platform(),
        "git": _git_state(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def _git_state() -> dict | None:
    def git(*args: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.CalledProcessError):
        return None


def _different(old: Any, new: Any, prefix: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = []
        for key in sorted(old.keys() | new.keys()):
            differences += _different(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return differences
    if old == new or prefix in FREE:
        return []
    if (prefix, old, new) == ("data.eval", None, False):  # older versions read null as the default
        return ["data.eval: the run evaluates on the eval split of data.train, and null turns that off; leave it out"]
    return [f"{prefix}: {old!r} in run.json, {new!r} now"]


class Begun(NamedTuple):
    """Values of run.json for keys whose default may have been another when the run began; None: not recorded."""

    lr: float | None = None
    negative_sampling: str | None = None


def recorded(run_dir: str | Path) -> Begun:
    """Returns what run.json records; nothing where it cannot be read, which check_resumable reports."""
    with suppress(BadInput, KeyError, TypeError, AttributeError):
        values = _with_old_defaults(read_object(Path(run_dir) / "run.json")["config"])
        return Begun(values["optim"]["lr"], values["data"]["negative_sampling"])
    return Begun()


def _with_old_defaults(values: dict) -> dict:
    """Returns a recorded config with what earlier versions did, where it lacks a key whose default is another today."""
    return values | {"data": {"negative_sampling": "first"} | values["data"]}


def as_begun(config: RunConfig, begun: Begun) -> RunConfig:
    """Returns a config with the recorded values of those keys that it does not state."""
    changed = {}
    if begun.lr is not None and not config.optim.states_lr:
        changed["optim"] = config.optim.with_default_lr(begun.lr)
    if begun.negative_sampling and "negative_sampling" not in config.data.model_fields_set:
        changed["data"] = config.data.model_copy(update={"negative_sampling": begun.negative_sampling})
    return config.model_copy(update=changed) if changed else config


def check_resumable(run_dir: Path, config: RunConfig, fingerprint: str) -> None:
    """Raises BadInput if the run in run_dir is not the one that the config describes."""
    try:
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        source = str(run_dir / "run.json")
        # keys of later versions get defaults
        recorded_config = parse_config(_with_old_defaults(record["config"]), source)
        recorded_fingerprint, recorded_plan = record["data_fingerprint"], record["plan"].get("version", 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{run_dir}/run.json: is no record of a run that can be resumed ({error})") from None
    config = as_begun(config, Begun(recorded_config.optim.lr, recorded_config.data.negative_sampling))
    different = _different(recorded_config.model_dump(mode="json"), config.model_dump(mode="json"), "")
    problems = [f"{run_dir}: cannot resume, {text}" for text in different]
    if recorded_fingerprint != fingerprint:
        problems.append(f"{run_dir}: cannot resume, data.train holds other data than the run began with")
    if recorded_plan != PLAN_VERSION:
        problems.append(
            f"{run_dir}: cannot resume, the run began with version {recorded_plan} of the batch plan, "
            f"this embedfleet has {PLAN_VERSION}"
        )
    mend = "resume with the run file that it began with, or name another output_dir"
    check([f"{problem}; {mend}" for problem in problems])


def recorded_base_dtype(run_dir: Path) -> str | None:
    """Returns fp32 or bf16, as the run began: `auto` may mean another dtype where it goes on. None: there is no run."""
    record = read_object(run_dir / "run.json")
    return record.get("base_dtype", "fp32") if record else None  # earlier versions had fp32 only


def recorded_guides(run_dir: Path) -> dict[str, str]:
    """Returns the sha256 by path of the guides (loss.guide) that the run began with."""
    return read_object(run_dir / "run.json").get("plan", {}).get("guides", {})


def chosen_budget(run_dir: Path, topology: dict) -> int | None:
    """Returns the micro_batch_tokens recorded by a run of this topology: other chunks would round sums differently."""
    record = read_object(run_dir / "run.json")
    return record["plan"]["micro_batch_tokens"] if record.get("topology") == topology else None
