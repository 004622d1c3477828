"""Checkpoints: written aside, fsynced, renamed, marker last. State is by parameter name: any engine resumes any."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_prep.output import fsync_folder
from data_prep.problems import Failed
from data_prep.shards import sha256_of

_NAME = re.compile(r"checkpoint-epoch-(\d+)")
MARKER = "complete.json"  # sizes and sha256 of every file; its presence means: whole


@dataclass
class TrainState:
    """Where a run stands after `step` optimizer steps. updates: AdamW updates made (steps less the skipped ones).

    The learning rate, the batches and the dropout of every step are functions of these numbers and the run file, so
    there is no scheduler or random state beside them.
    """

    step: int
    epoch: int
    updates: int
    log_offset: int  # bytes of logs.jsonl that belong to the steps done
    loss_scale: dict
    temperatures: dict = field(default_factory=dict)  # by source: optim.LearnedTemperature.state()


def save(engine, run_dir: Path, name: str, state: TrainState | None, write_model) -> Path:
    """Writes run_dir/name (a model folder; with state/ for resume unless `state` is None). Collective.

    write_model(folder, weights) writes the loadable model from fp32 CPU weights; it is called on rank 0 only.
    """
    weights = engine.weights()
    moments = engine.moments() if state is not None else {}
    target = run_dir / name
    engine.world.on_first(lambda: _write(target, weights, moments, state, write_model))
    return target


def _write(target: Path, weights: dict, moments: dict, state: TrainState | None, write_model) -> None:
    aside = target.with_name(f".writing-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write_model(aside, weights)
        if state is not None:
            (aside / "state").mkdir()
            save_file({k: t.contiguous() for k, t in moments.items()}, aside / "state" / "optimizer.safetensors")
            (aside / "state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        _seal(aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk gets its space back
        if isinstance(error, (OSError, SafetensorError)):
            raise Failed(f"{target}: could not be written ({error}); earlier checkpoints are whole") from None
        raise
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)
    fsync_folder(target.parent)


def _seal(folder: Path) -> None:
    """Hashes and fsyncs every file, then writes the marker."""
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


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is there with its recorded bytes."""
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{folder.name}: unfinished (no {MARKER})"
    for name, fact in files.items():
        path = folder / name
        if not path.is_file():
            return f"{folder.name}: {name} is missing"
        if path.stat().st_size != fact["bytes"] or sha256_of(path) != fact["sha256"]:
            return f"{folder.name}: {name} is not what was written (size or sha256 differs)"
    return None


def newest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint with resume state, and a line for each newer one that had to be passed over."""
    passed = []
    epochs = {int(m[1]): p for p in run_dir.iterdir() if (m := _NAME.fullmatch(p.name))} if run_dir.is_dir() else {}
    for _, folder in sorted(epochs.items(), reverse=True):
        problem = damage(folder)
        if problem is None:
            return folder, passed
        passed.append(problem)
    return None, passed


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state" / "trainer.json").read_text()))


def read_moments(folder: Path) -> dict:
    return load_file(folder / "state" / "optimizer.safetensors")
