"""Checkpoints: written aside, fsynced, renamed, marker last. State is by parameter name: any engine resumes any."""

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_prep.common.errors import Failed
from data_prep.common.files import fsync_folder, sha256_of
from trainer.config.sections import CheckpointConfig
from trainer.run_dir.layout import MARKER, TrainState, numbered

if TYPE_CHECKING:
    from trainer.engine.protocol import Engine

ASIDE = ".writing-"
# Writes a loadable model folder from fp32 CPU weights by name. Called on rank 0 only.
WriteModel = Callable[[Path, dict], None]
# Called at each save, on every rank, with the state to write (None: a model without one).
Prepare = Callable[[TrainState | None], WriteModel]


class Clock:
    """Says when a checkpoint is due by steps or minutes. Ranks agree on it in compute_gradients."""

    def __init__(self, config: CheckpointConfig):
        self.config, self.last = config, time.monotonic()

    def due(self, step: int) -> bool:
        """True where the state after this many steps is to be written."""
        by_steps = self.config.every_steps and step % self.config.every_steps == 0
        minutes = (time.monotonic() - self.last) / 60
        return bool(by_steps or (self.config.every_minutes and minutes >= self.config.every_minutes))

    def written(self) -> None:
        self.last = time.monotonic()


class Writer:
    """Writes the model folders of a run, one at a time; checkpoints between epochs while training goes on."""

    def __init__(self, engine: "Engine", run_dir: Path, config: CheckpointConfig, prepare: Prepare):
        self.engine, self.run_dir, self.config, self.prepare = engine, run_dir, config, prepare
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(self, name: str, state: TrainState | None, background: bool = False) -> Path:
        """Writes run_dir/name (a model folder; with state/ for resume unless `state` is None). Collective.

        background: returns once there is a copy to write from, if there is memory for one; the next save or wait
        raises its errors. Raises Failed where writing fails; earlier checkpoints stay whole.
        """
        self.wait()
        write_model = self.prepare(state)
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
        for kind, keep in (("step", self.config.keep_steps), ("epoch", self.config.keep_epochs)):
            reached = getattr(state, kind)
            behind = [folder for number, folder in numbered(self.run_dir, kind).items() if number <= reached]
            for folder in behind[:-keep] if keep else []:
                remove(folder)


def _copies(weights: dict, moments: dict) -> tuple[dict, dict] | None:
    """Returns copies of the tensors, or None where they would take more than half of the free memory."""
    needed = sum(t.numel() * t.element_size() for tensors in (weights, moments) for t in tensors.values())
    if 2 * needed > psutil.virtual_memory().available:
        return None
    return tuple({name: t.clone() for name, t in tensors.items()} for tensors in (weights, moments))


def write(target: Path, weights: dict, moments: dict, state: TrainState | None, write_model: WriteModel) -> None:
    """Writes one folder, whole or not at all. Raises Failed where writing fails."""
    aside = target.with_name(f"{ASIDE}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write_model(aside, weights)
        if state is not None:
            (aside / "state").mkdir()
            save_file({k: t.contiguous() for k, t in moments.items()}, aside / "state" / "optimizer.safetensors")
            (aside / "state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        _seal(aside)
        if target.exists():
            remove(target)
        os.replace(aside, target)
        fsync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
        if isinstance(error, (OSError, SafetensorError)):
            raise Failed(f"{target}: could not be written ({error}); earlier checkpoints are whole") from None
        raise


def remove(folder: Path) -> None:
    """Removes a checkpoint, its marker first: if the process is killed, the rest is unfinished."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def sweep(run_dir: Path) -> None:
    """Removes the unfinished folders of a killed run."""
    for aside in run_dir.glob(f"{ASIDE}*"):
        shutil.rmtree(aside, ignore_errors=True)


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
