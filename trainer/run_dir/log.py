"""The log of a run: logs.jsonl, the JSON summaries made from it, trackers and screen. Rank 0 writes."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.common.console import duration, live_bar, say
from data_prep.common.errors import Failed
from data_prep.common.files import whole_file, write_json
from trainer.run_dir.callbacks import Callbacks
from trainer.run_dir.trackers import TensorBoard, asked_trackers

LOG = "logs.jsonl"


def write_json_array(path: Path, values: Iterable[Any]) -> None:
    """Writes the bytes of write_json(path, list(values)) while it holds one value at a time."""
    with whole_file(path) as file:
        before = "["
        for value in values:
            file.write(f"{before}\n  " + json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  "))
            before = ","
        file.write("[]\n" if before == "[" else "\n]\n")


def read_events(path: Path, start: int = 0, problems: list[str] | None = None) -> Iterator[dict]:
    """Yields the events of a logs.jsonl one by one. start: the byte to start at, the first of a line.

    A line ends at b"\\n" only: a logged text may hold other separators, such as U+2028. A failed machine may leave half
    a line: it is skipped, and `problems` gets a line about it, as for a file that cannot be read.
    """
    problems = [] if problems is None else problems
    try:
        with path.open("rb") as file:
            file.seek(start)
            for number, line in enumerate(file, 1):
                try:
                    event = json.loads(line)
                except ValueError:
                    problems.append(f"line {number} of {path.name} is no whole event")
                    continue
                yield event
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")


class RunLog:
    """logs.jsonl: one event per line, flushed. Active on rank 0 only. Also serves the trackers and the screen."""

    def __init__(self, run_dir: Path, active: bool, keep_bytes: int = 0, callbacks: Iterable[str] = ()):
        """keep_bytes: how much of an existing log belongs to the resumed checkpoint; the rest is moved to another file.
        callbacks: train.callbacks.

        With a tracker that the environment asks for, run_dir/run.json must exist. Raises BadInput and Failed for it.
        """
        self.run_dir, self.active = run_dir, active
        if not active:
            return
        self.path = run_dir / LOG
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < keep_bytes:
            say(f"{self.path}: {keep_bytes - size} of the {keep_bytes} bytes written before the checkpoint are gone")
        if size > keep_bytes:
            tail = self.path.read_bytes()[keep_bytes:]
            (run_dir / f"logs.tail-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl").write_bytes(tail)
            os.truncate(self.path, keep_bytes)
        self.file = self.path.open("ab", buffering=0)
        self.bar = _Bar() if sys.stderr.isatty() else None
        self.epoch_start = 0  # byte offset: no step of the current epoch lies before it
        self._last_step = 0  # before this process
        self._began: tuple[int, float] | None = None  # the first step of this process, and when it ended
        self._rare: list[dict] = []  # all events but the steps: few, so they stay in memory
        for event in read_events(self.path):
            if event["event"] == "step":
                self._last_step = max(self._last_step, event["step"])
            else:
                self._rare.append(event)
        self.trackers = asked_trackers(run_dir)
        self.callbacks = Callbacks(list(callbacks), run_dir)

    def event(self, kind: str, **values) -> None:
        """Appends one event. A float that is not finite (of a skipped step) becomes null: JSON has no Infinity."""
        if not self.active:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **finite}, ensure_ascii=False, allow_nan=False)
        self._append(f"{line}\n".encode())
        if kind != "step":
            self._rare.append(json.loads(line))
        if kind == "epoch":
            self.epoch_start = self.offset()
        if kind != "end":  # the run tells it with the folder of the model
            self.callbacks.tell(kind, json.loads(line))

    def tell_end(self, step: int, folder: Path) -> None:
        """Tells the callbacks that the run has ended. folder: the final model."""
        if self.active:
            self.callbacks.tell("end", {"step": step, "folder": str(folder)})

    def written(self, folder: Path, step: int) -> None:
        """Notes a checkpoint that is whole, for the callbacks; from any thread of rank 0."""
        self.callbacks.written(folder, step)

    def _append(self, line: bytes) -> None:
        """Writes the whole line or nothing of it. Raises Failed."""
        start, reason = self.offset(), "no space left"
        try:
            written = self.file.write(line)
        except OSError as error:
            written, reason = 0, error.strerror
        if written < len(line):
            os.ftruncate(self.file.fileno(), start)  # a full disk takes a part of the line
            raise Failed(f"{self.path}: could not be written ({reason}); the checkpoints so far are whole")

    def scalars(self, group: str, values: dict, step: int) -> None:
        """Sends the numbers among the values to the trackers as `group/name`."""
        if self.active:
            numbers = {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
            for tracker in (self.board, *self.trackers):
                tracker.scalars(numbers, step)

    @cached_property
    def board(self) -> TensorBoard:
        """Created at the first write: its import would delay the first step."""
        return TensorBoard(self.run_dir, self._last_step)

    def say(self, text: str) -> None:
        if self.active:
            (self.bar.say if self.bar else say)(text)

    def progress(self, step: int, total: int, text: str, every: int) -> None:
        """Moves the bar of a terminal; elsewhere prints a line at the first, the last and every `every`-th step, with
        the time left at the mean speed so far, evaluations and checkpoints included."""
        if not self.active:
            return
        if self.bar:
            self.bar.move(step, total, text)
            return
        now = time.monotonic()
        first, began = self._began = self._began or (step, now)
        if step % every == 0 or step in (1, total):
            left = (total - step) * (now - began) / max(1, step - first)
            say(f"step {step}/{total}  {text}" + (f"  {duration(left)} left" if left else ""))

    def offset(self) -> int:
        """Bytes of logs.jsonl so far (0 on other ranks)."""
        return self.file.tell() if self.active else 0

    def sync(self) -> None:
        """Returns when the log is on disk."""
        if self.active:
            os.fsync(self.file.fileno())

    def steps(self, start: int = 0) -> Iterator[dict]:
        """Yields the step events from a byte offset on, read from the file."""
        return (event for event in read_events(self.path, start) if event["event"] == "step")

    def events(self, kind: str) -> list[dict]:
        """All events of one kind."""
        return list(self.steps()) if kind == "step" else [event for event in self._rare if event["event"] == kind]

    def write_epoch_files(self) -> None:
        """Writes detailed_training_logs.json (per step) and training_losses.json (per epoch) anew. Rank 0 only."""
        write_json_array(self.run_dir / "detailed_training_logs.json", self.steps())
        write_json(self.run_dir / "training_losses.json", self.events("epoch"))

    def close(self) -> None:
        if self.active:
            self.file.close()
            if "board" in self.__dict__:
                self.board.close()
            for tracker in self.trackers:
                tracker.close()
            if self.bar:
                self.bar.stop()


class _Bar:
    """A live line on the terminal, below the printed lines."""

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
