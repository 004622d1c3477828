"""What a run writes about itself: run.json, logs.jsonl, the JSON summaries made from it, TensorBoard. Rank 0 writes."""

import json
import math
import os
import sys
import time
from functools import cached_property
from pathlib import Path

from data_prep.common.console import live_bar, say
from data_prep.common.errors import Failed
from data_prep.common.files import write_json
from trainer.run_dir.trackers import TensorBoard, WeightsAndBiases


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
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = live_bar(*columns, transient=False)
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def move(self, step: int, total: int, text: str) -> None:
        self._progress.update(self._task, completed=step, total=total, description=text)

    def stop(self) -> None:
        self._progress.stop()
