"""Layout of a run directory: names of checkpoints, their state, their damage. Never imports torch."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_of

BEST = "best-step-"  # and a number: the best model so far, until final/ is written
_NAME, _BEST_NAME = re.compile(r"checkpoint-(epoch|step)-(\d+)"), re.compile(rf"{BEST}(\d+)")
RUN_FILE, SHARDS, SHARDS_OF, LOCK = "run.yaml", "shards", "shards.json", ".shards.lock"  # see frontends/auto_shards.py
BEFORE = "before.json"  # see before.py
RUN_LOCK = ".run.lock"  # see lock.py
MADE_AHEAD = (  # of a run that has not begun; with what is there while they are made, and after a kill
    RUN_FILE, SHARDS, SHARDS_OF, LOCK, BEFORE, RUN_LOCK, f".{SHARDS}.unfinished.lock",
    *(f".{name}.unfinished" for name in (SHARDS, RUN_FILE, SHARDS_OF, BEFORE)),
)  # fmt: skip
MARKER = "complete.json"  # sizes and sha256 of every file of a checkpoint; its presence means: whole


@dataclass
class TrainState:
    """State of a run between two steps; rate, batches and dropout of every step follow from it and the run file."""

    step: int  # optimizer steps done
    epoch: int  # epochs that have ended, evaluation included
    updates: int  # AdamW updates made: steps less the skipped ones
    log_offset: int  # bytes of logs.jsonl that belong to the steps done
    loss_scale: dict  # LossScale.state()
    temperatures: dict = field(default_factory=dict)  # by source: LearnedTemperature.state()
    watch: dict = field(default_factory=dict)  # of watch.Watch


def measured_file(output: Path) -> Path:
    """Returns the file beside the output of a blend that keeps what is measured, of every query and share."""
    return output.with_name(f"{output.name}.measured.json")


def damage(folder: Path) -> str | None:
    """Returns the problem of a checkpoint, or None where every file has its recorded bytes."""
    if not (folder / MARKER).is_file():
        return f"{folder.name}: unfinished (no {MARKER})"
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        facts = {name: (fact["bytes"], fact["sha256"]) for name, fact in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a flipped byte leaves any JSON, or none
        return f"{folder.name}: {MARKER} cannot be read"
    for name, (size, sha256) in facts.items():
        path = folder / name
        if not path.is_file():
            return f"{folder.name}: {name} is missing"
        if path.stat().st_size != size or sha256_of(path) != sha256:
            return f"{folder.name}: {name} is not what was written (size or sha256 differs)"
    return None


def newest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest whole checkpoint with resume state, and a line for each newer one that is damaged."""
    skipped = []
    for folder in sorted(_checkpoints(run_dir), key=_step_of, reverse=True):
        problem = damage(folder)
        if problem is None:
            return folder, skipped
        skipped.append(problem)
    return None, skipped


def to_resume(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Returns newest(); None where no checkpoint was ever whole. Raises BadInput where some were, and none is any more:
    a run from step 0 would write over what is left of it."""
    folder, skipped = newest(run_dir)
    if folder is None and any((one / MARKER).is_file() for one in _checkpoints(run_dir)):
        mend = "put it back from a copy, name another output_dir, or remove these folders to begin anew"
        raise BadInput([f"output_dir: {run_dir / line}, and no checkpoint is whole; {mend}" for line in skipped])
    return folder, skipped


def _checkpoints(run_dir: Path) -> list[Path]:
    return [*numbered(run_dir, "step").values(), *numbered(run_dir, "epoch").values()]


def numbered(run_dir: Path, kind: str) -> dict[int, Path]:
    """Returns the checkpoints of a kind ("step", "epoch") by their numbers, in order."""
    paths = run_dir.iterdir() if run_dir.is_dir() else []
    return dict(sorted((int(m[2]), p) for p in paths if (m := _NAME.fullmatch(p.name)) and m[1] == kind))


def best_models(run_dir: Path) -> dict[int, Path]:
    """Returns the models that were the best so far by their steps."""
    paths = run_dir.iterdir() if run_dir.is_dir() else []
    return dict(sorted((int(m[1]), path) for path in paths if (m := _BEST_NAME.fullmatch(path.name))))


def kept_model(run_dir: Path, step: int, epoch: int, average: bool) -> tuple[Path | None, str]:
    """Returns the folder that holds the model of a step, which was the best so far, or None; and what is wrong with it.

    average: the model is the average of the weights, which the checkpoint of an epoch holds in its state only."""
    folder, checkpoint = run_dir / f"{BEST}{step}", run_dir / f"checkpoint-epoch-{epoch}"
    if not folder.is_dir() and not average and (checkpoint / "state").is_dir() and _step_of(checkpoint)[0] == step:
        folder = checkpoint
    problem = damage(folder)
    return (None, problem) if problem else (folder, "")


def _step_of(folder: Path) -> tuple[float, float]:
    """Returns the (step, epoch) of a checkpoint; infinity where its state cannot be read."""
    try:
        state = read_state(folder)
        return state.step, state.epoch
    except (OSError, ValueError, TypeError):
        return float("inf"), 0


def read_state(folder: Path) -> TrainState:
    return TrainState(**json.loads((folder / "state" / "trainer.json").read_text()))


def model_of_run(source: Path) -> Path:
    """Returns final/ of a run, else its newest whole checkpoint, or the named checkpoint. Raises BadInput."""
    if not source.is_dir():
        raise BadInput(f"{source}: no such folder; name a run's output_dir, or a checkpoint in it")
    if not (source / "run.json").is_file():
        problem = damage(source)
        if problem:
            text = "is neither a run (no run.json) nor a whole checkpoint of one; name a run's output_dir"
            raise BadInput(f"{source}: {text} ({problem})")
        return source
    final = damage(source / "final")
    if final is None:
        return source / "final"
    folder, passed = newest(source)
    if folder is None:
        raise BadInput([f"{source / final}", *(f"{source / line}" for line in passed)])
    for line in (final, *passed):
        say(f"passed over: {source / line}")
    say(f"exporting {folder}")
    return folder
