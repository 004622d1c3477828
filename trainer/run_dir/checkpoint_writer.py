"""Checkpoints: written aside, fsynced, renamed, marker last. State is by parameter name: any engine resumes any."""

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_prep.common.console import say
from data_prep.common.errors import Failed
from data_prep.common.files import fsync_folder, sha256_of, write_json
from trainer.config.sections import CheckpointConfig
from trainer.run_dir.layout import BEST, MARKER, TrainState, best_models, damage, numbered

if TYPE_CHECKING:
    from trainer.engine.protocol import Engine

ASIDE, OLD, OF_OUTPUT = ".writing-", ".replaced-", ".writing-"  # the last one behind the name of an output
# Writes a loadable model folder from fp32 CPU weights by name. Called on rank 0 only.
WriteModel = Callable[[Path, dict], None]
# Called at each save, on every rank, with the state to write (None: a model without one).
Prepare = Callable[[TrainState | None], WriteModel]


class Clock:
    """Says when a checkpoint, or an evaluation, is due by steps or minutes. Ranks agree on it in compute_gradients."""

    def __init__(self, every_minutes: float | None, *every_steps: float | None):
        """every_steps: periods in steps, each of which counts; of 2.5 the steps are 3, 5, 8, 10 and so on."""
        self.every_steps, self.every_minutes = [every for every in every_steps if every], every_minutes
        self.last = time.monotonic()

    def due(self, step: int) -> bool:
        """True where it is due after this many steps."""
        minutes = (time.monotonic() - self.last) / 60
        return self.by_steps(step) or bool(self.every_minutes and minutes >= self.every_minutes)

    def by_steps(self, step: int) -> bool:
        """True where the number of steps alone says so."""
        return any(step // every > (step - 1) // every for every in self.every_steps)

    def done(self) -> None:
        self.last = time.monotonic()


class Writer:
    """Writes the model folders of a run, one at a time; checkpoints between epochs while training goes on."""

    def __init__(
        self,
        engine: "Engine",
        run_dir: Path,
        config: CheckpointConfig,
        prepare: Prepare,
        written: Callable[[Path, int], None] = lambda folder, step: None,
    ):
        """written: called on rank 0 with each whole checkpoint and its step, perhaps by another thread."""
        self.engine, self.run_dir, self.config, self.prepare, self.written = engine, run_dir, config, prepare, written
        self.best: int | None = None  # step of the best model that the newest checkpoint names; rank 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(self, name: str, state: TrainState | None, background: bool = False, facts: dict | None = None) -> Path:
        """Writes run_dir/name (a model folder; with state/ for resume unless `state` is None). Collective.

        background: returns once there is a copy to write from, if there is memory for one; the next save or wait
        raises its errors. facts: more JSON files of the folder, name -> content. Raises Failed where writing fails;
        earlier checkpoints stay whole.
        """
        self.wait()
        write_model = with_facts(self.prepare(state), facts or {})
        weights = self.engine.weights()
        moments = self.engine.moments() if state is not None else {}
        target = self.run_dir / name

        def begin() -> None:
            if background and (copies := _copies(weights, moments)):
                self._pending = self._pool.submit(self._write, target, *copies, state, write_model)
            else:
                self._write(target, weights, moments, state, write_model)

        self.engine.world.on_first(begin)
        return target

    def go_back(self, state: TrainState) -> None:
        """Removes the checkpoints of later steps and epochs, so that a resumed run starts from `state`. Collective."""
        self.wait()

        def remove_ahead() -> None:
            for kind in ("step", "epoch"):
                for number, folder in numbered(self.run_dir, kind).items():
                    if number > getattr(state, kind):
                        remove(folder)

        self.engine.world.on_first(remove_ahead)

    def save_best(self, step: int) -> None:
        """Writes the model as the best so far. That of the newest checkpoint stays: a killed run goes back to it.
        Collective."""
        self.save(f"{BEST}{step}", None)
        self.engine.world.on_first(lambda: remove_best(self.run_dir, step, but=(step, self.best)))

    def write_on_first(self, name: str, model: Callable[[], WriteModel], facts: dict) -> Path:
        """Writes run_dir/name on rank 0, from what is not in the engine. facts: as of save. Collective."""
        self.wait()
        target = self.run_dir / name
        self.engine.world.on_first(lambda: write(target, {}, {}, None, with_facts(model(), facts)))
        return target

    def wait(self) -> None:
        """Waits for the write in progress. Collective; raises its error on every rank."""
        pending, self._pending = self._pending, None
        self.engine.world.on_first(lambda: pending and pending.result())

    def close(self) -> None:
        """Finishes the write in progress; call it after the last wait, or a failure."""
        self._pool.shutdown(wait=True)

    def _write(self, target: Path, weights: dict, moments: dict, state: TrainState | None, model: WriteModel) -> None:
        """Writes a folder, then removes checkpoints beyond keep_steps and keep_epochs. Those of later steps stay."""
        write(target, weights, moments, state, model)
        if state is None:
            return
        self.written(target, state.step)
        self.best = (state.watch.get("chosen") or {}).get("step")
        remove_best(target.parent, state.step, but=(self.best,))
        best = state.watch.get("chosen") or {}
        in_checkpoint = self.best not in best_models(target.parent)  # the checkpoint of its epoch is its only copy
        for kind, keep in (("step", self.config.keep_steps), ("epoch", self.config.keep_epochs)):
            reached = getattr(state, kind)
            behind = [number for number in numbered(self.run_dir, kind) if number <= reached]
            for number in behind[:-keep] if keep else []:
                if not (kind == "epoch" and in_checkpoint and number == best.get("epoch")):
                    remove(self.run_dir / f"checkpoint-{kind}-{number}")


def _copies(weights: dict, moments: dict) -> tuple[dict, dict] | None:
    """Returns copies of the tensors, or None where they would take more than half of the free memory."""
    needed = sum(t.numel() * t.element_size() for tensors in (weights, moments) for t in tensors.values())
    if 2 * needed > psutil.virtual_memory().available:
        return None
    return tuple({name: t.clone() for name, t in tensors.items()} for tensors in (weights, moments))


def with_facts(model: WriteModel, facts: dict) -> WriteModel:
    """Returns a WriteModel that adds JSON files, name -> content."""

    def write_both(folder: Path, weights: dict) -> None:
        model(folder, weights)
        for name, values in facts.items():
            write_json(folder / name, values)

    return write_both


def copy_of(source: Path) -> WriteModel:
    """Returns a WriteModel that takes the model of another folder, as links where the disk allows them."""

    def copy(folder: Path, _: dict) -> None:
        shutil.copytree(source, folder, copy_function=_link, ignore=lambda *_: {MARKER, "state"}, dirs_exist_ok=True)

    return copy


def _link(source: str, target: str) -> None:
    """Links a file of weights; copies others, which people edit, and where a file system has no links."""
    try:
        if not source.endswith(".safetensors"):
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write(target: Path, weights: dict, moments: dict, state: TrainState | None, write_model: WriteModel) -> None:
    """Writes one folder of a run, whole or not at all, in place of an older one. Raises Failed where writing fails."""
    aside = target.with_name(f"{ASIDE}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with _space_back(aside, f"{target}: could not be written, and earlier checkpoints are whole"):
        aside.mkdir(parents=True)
        write_model(aside, weights)
        if state is not None:
            (aside / "state").mkdir()
            save_file({k: t.contiguous() for k, t in moments.items()}, aside / "state" / "optimizer.safetensors")
            (aside / "state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        _seal(aside)
        _put_in_place(aside, target)


def write_output(output: Path, write_files: Callable[[Path], None]) -> None:
    """Writes the folder of a command, whole or not at all, where there is none or an empty one. Raises Failed; a whole
    folder that finds files in its place stays beside it."""
    target = output.resolve()  # of a link to another disk
    name = f".{target.name}{OF_OUTPUT}"  # none that sweep finds
    aside = target.with_name(f"{name}{uuid.uuid4().hex[:8]}")  # two commands may have the same output
    beside = target.parent.iterdir() if target.parent.is_dir() else []
    for left in sorted(one for one in beside if one.name.startswith(name)):
        say(f"{left}: another command that writes {output} is at work, or was killed: remove it if there is none")
    with _space_back(aside, f"{output}: could not be written"):
        aside.mkdir(parents=True)
        write_files(aside)
        _seal(aside)
    try:
        if target.is_dir():
            target.rmdir()
        os.rename(aside, target)
    except OSError as error:
        mend = f"nothing in it was replaced; the whole folder is {aside}: move it where you want it"
        raise Failed(f"{output}: is no empty folder any more ({error.strerror}), and {mend}") from None
    fsync_folder(target.parent)


@contextmanager
def _space_back(aside: Path, failed: str) -> Iterator[None]:
    """A block that fills the folder `aside`; if it fails, the folder is removed: a full disk gets its space back."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise Failed(f"{failed} ({error})") from None
        raise


def _put_in_place(aside: Path, target: Path) -> None:
    """Renames a sealed folder; an older one is removed last, so that a kill leaves one of them (see sweep)."""
    old = target.with_name(f"{OLD}{target.name}")
    remove(old)
    if replaces := os.path.lexists(target):
        os.replace(target, old)
    try:
        os.replace(aside, target)
    except BaseException:
        if replaces:
            os.replace(old, target)
        raise
    fsync_folder(target.parent)
    remove(old)


def remove(folder: Path) -> None:
    """Removes a checkpoint if it exists, its marker first: if the process is killed, the rest is unfinished. Of a link
    to another place the link alone. Raises Failed."""
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except OSError as error:
        raise Failed(f"{folder}: could not be removed ({error}); remove it, and go on with --resume") from None


def remove_best(run_dir: Path, reached: float = math.inf, but: Iterable[int | None] = ()) -> None:
    """Removes the models that were the best so far, except those of the steps `but`. reached: those of later steps stay
    too, which a run that lost its checkpoints has made."""
    for step, folder in best_models(run_dir).items():
        if step <= reached and step not in but:
            remove(folder)


def sweep(run_dir: Path) -> None:
    """Puts the whole folders of a killed run in their places, where there is none, and removes the others. Before the
    checkpoint to resume from is chosen: one that is put in place later would be ahead of the log."""
    for kind in (ASIDE, OLD):
        for aside in sorted(one for one in run_dir.glob(f"{kind}*") if one.is_dir()):
            target = run_dir / aside.name.removeprefix(kind)
            if not os.path.lexists(target) and (kind == OLD or damage(aside) is None):
                os.replace(aside, target)
            else:
                remove(aside)


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        _fsync(path)
    (folder / MARKER).write_text(json.dumps({"files": files}, indent=1) + "\n")
    _fsync(folder / MARKER)
    fsync_folder(folder)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_moments(folder: Path) -> dict:
    return load_file(folder / "state" / "optimizer.safetensors")
