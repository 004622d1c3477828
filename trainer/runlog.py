"""What a run writes about itself: run.json, logs.jsonl, the JSON summaries made from it, TensorBoard. Rank 0 writes."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.output import whole_file
from data_prep.problems import BadInput, Failed
from data_prep.progress import say
from trainer.config import RunConfig, parse_config
from trainer.planner import PLAN_VERSION
from trainer.trackers import TensorBoard, WeightsAndBiases

PACKAGES = (
    "embedfleet", "torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "datasets", "pyarrow",
    "safetensors",
)  # fmt: skip
# Facts that may change between a run and its resumption: they change speed and memory, never the mathematics.
# (Where the data lie may change as well: what they are is in the fingerprint.)
FREE = (
    "output_dir", "run_name", "data.train", "data.allow", "train.micro_batch_tokens",
    "train.gradient_checkpointing", "train.device", "train.log_every",
    "train.timeout_minutes", "train.max_skipped_steps", "checkpoint.every_steps", "checkpoint.every_minutes",
    "checkpoint.keep_steps", "checkpoint.keep_epochs", "watch.keep_best", "watch.tolerance",
)  # fmt: skip


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all, so that a reader never sees half a file."""
    with whole_file(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")


def describe_run(config: RunConfig, topology: dict, fingerprint: str, plan: dict) -> dict:
    """The content of run.json. Holds no environment: secrets live there."""
    return {
        "config": config.model_dump(mode="json"),
        "topology": topology,
        "plan": plan,
        "data_fingerprint": fingerprint,
        "versions": versions(),
        "platform": platform.platform(),
        "git": _git_state(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def read_events(run_dir: Path) -> tuple[list[dict], list[str]]:
    """(events of logs.jsonl, a line for what of it cannot be read): a machine that failed may leave half a line."""
    try:
        lines = (run_dir / "logs.jsonl").read_bytes().splitlines()
    except OSError as error:
        return [], [f"logs.jsonl cannot be read ({error.strerror})"]
    events, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except ValueError:
            problems.append(f"line {number} of logs.jsonl is no whole event")
    return events, problems


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
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _different(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new or prefix in FREE else [f"{prefix}: {old!r} in run.json, {new!r} now"]


def check_resumable(run_dir: Path, config: RunConfig, fingerprint: str) -> None:
    """Raises BadInput where the run in run_dir is another one than the config describes."""
    try:
        recorded = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        began_with = parse_config(recorded["config"], str(run_dir / "run.json"))  # keys of later versions get defaults
        began_fingerprint, began_plan = recorded["data_fingerprint"], recorded["plan"].get("version", 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{run_dir}/run.json: is no record of a run that can be resumed ({error})") from None
    different = _different(began_with.model_dump(mode="json"), config.model_dump(mode="json"), "")
    problems = [f"{run_dir}: cannot resume, {text}" for text in different]
    if began_fingerprint != fingerprint:
        problems.append(f"{run_dir}: cannot resume, data.train holds other data than the run began with")
    if began_plan != PLAN_VERSION:
        problems.append(
            f"{run_dir}: cannot resume, the run began with version {began_plan} of the batch plan, "
            f"this embedfleet has {PLAN_VERSION}"
        )
    if problems:
        raise BadInput([*problems, "resume with the same run file, or train into another output_dir"])


def chosen_budget(run_dir: Path, topology: dict) -> int | None:
    """What micro_batch_tokens an interrupted run of the same topology had: with other chunks the sums round otherwise,
    and the resumed run would not end in the same bytes. None for another topology, or no record of one."""
    try:
        recorded = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return recorded["plan"]["micro_batch_tokens"] if recorded["topology"] == topology else None


class RunLog:
    """logs.jsonl: one event per line, flushed; rank 0 only (inactive elsewhere). Also the trackers and the screen."""

    def __init__(self, run_dir: Path, active: bool, keep_bytes: int = 0):
        """keep_bytes: how much of an existing log belongs to the checkpoint that is resumed; the rest is put aside.

        With WANDB_PROJECT, run_dir/run.json is there already. Raises BadInput and Failed for that tracker.
        """
        self.run_dir, self.active = run_dir, active
        if not active:
            return
        self.path = run_dir / "logs.jsonl"
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < keep_bytes:
            say(f"{self.path}: {keep_bytes - size} of the {keep_bytes} bytes written before the checkpoint are gone")
        if size > keep_bytes:
            tail = self.path.read_bytes()[keep_bytes:]
            (run_dir / f"logs.tail-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl").write_bytes(tail)
            os.truncate(self.path, keep_bytes)
        self.file = self.path.open("ab", buffering=0)
        self.bar = _Bar() if sys.stderr.isatty() else None
        self.last_step = max((e["step"] for e in self.events("step")), default=0)
        self.trackers = [_weights_and_biases(run_dir)] if os.environ.get("WANDB_PROJECT") else []

    def event(self, kind: str, **values) -> None:
        if self.active:
            # JSON has no Infinity: a gradient that is not finite (a skipped step) becomes null
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            line = {"event": kind, "time": round(time.time(), 3), **finite}
            self._append((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def _append(self, line: bytes) -> None:
        """The whole line or nothing of it. Raises Failed."""
        start, reason = self.offset(), "no space left"
        try:
            taken = self.file.write(line)
        except OSError as error:
            taken, reason = 0, error.strerror
        if taken < len(line):
            os.ftruncate(self.file.fileno(), start)  # a full disk takes a part of it
            raise Failed(f"{self.path}: could not be written ({reason}); the checkpoints so far are whole")

    def scalars(self, group: str, values: dict, step: int) -> None:
        """Numbers for the trackers as `group/name`."""
        if self.active:
            numbers = {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            for tracker in (self.board, *self.trackers):
                tracker.scalars(numbers, step)

    @cached_property
    def board(self) -> TensorBoard:
        """Made when there is something to write: its import would delay the first step."""
        return TensorBoard(self.run_dir, self.last_step)

    def say(self, text: str) -> None:
        """One line for people, from rank 0."""
        if self.active:
            (self.bar.say if self.bar else say)(text)

    def progress(self, step: int, total: int, text: str, every: int) -> None:
        """Where the run is: a bar on a terminal; elsewhere a line at the first, the last and every `every`-th step."""
        if not self.active:
            return
        if self.bar:
            self.bar.move(step, total, text)
        elif step % every == 0 or step in (1, total):
            say(f"step {step}/{total}  {text}")

    def offset(self) -> int:
        """Bytes of logs.jsonl so far (0 on other ranks)."""
        return self.file.tell() if self.active else 0

    def sync(self) -> None:
        """The log is on disk when this returns."""
        if self.active:
            os.fsync(self.file.fileno())

    def events(self, kind: str) -> list[dict]:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def write_epoch_files(self) -> None:
        """detailed_training_logs.json (per step) and training_losses.json (per epoch), anew from logs.jsonl."""
        if self.active:
            write_json(self.run_dir / "detailed_training_logs.json", self.events("step"))
            write_json(self.run_dir / "training_losses.json", self.events("epoch"))

    def write_summary(self, values: dict) -> None:
        if self.active:
            evaluations = self.events("evaluation")
            write_json(self.run_dir / "training_summary_report.json", {**values, "evaluations": evaluations})

    def close(self) -> None:
        if self.active:
            self.file.close()
            if "board" in self.__dict__:
                self.board.close()
            for tracker in self.trackers:
                tracker.close()
            if self.bar:
                self.bar.stop()


def _weights_and_biases(run_dir: Path) -> WeightsAndBiases:
    recorded = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return WeightsAndBiases(run_dir, recorded["config"], recorded["started"])


class _Bar:
    """A live line on the terminal, below whatever is said meanwhile."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def move(self, step: int, total: int, text: str) -> None:
        self._progress.update(self._task, completed=step, total=total, description=text)

    def stop(self) -> None:
        self._progress.stop()
