"""What lies in a run directory: names of checkpoints, whether one is whole, where a run stands. Never imports torch."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_of

_NAME = re.compile(r"checkpoint-(epoch|step)-(\d+)")
RUN_FILE, SHARDS, SHARDS_OF, LOCK = "run.yaml", "shards", "shards.json", ".shards.lock"  # see frontends/auto_shards.py
MADE_AHEAD = (RUN_FILE, SHARDS, SHARDS_OF, LOCK, f".{SHARDS}.unfinished")  # of a run that has not begun
MARKER = "complete.json"  # sizes and sha256 of every file of a checkpoint; its presence means: whole


@dataclass
class TrainState:
    """Where a run stands after `step` optimizer steps. updates: AdamW updates made (steps less the skipped ones).

    epoch: how many have ended, evaluation included. The learning rate, the batches and the dropout of every step are
    functions of these numbers and the run file, so there is no scheduler or random state beside them.
    """

    step: int
    epoch: int
    updates: int
    log_offset: int  # bytes of logs.jsonl that belong to the steps done
    loss_scale: dict
    temperatures: dict = field(default_factory=dict)  # by source: optim.LearnedTemperature.state()
    watch: dict = field(default_factory=dict)  # of watch.Watch


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is there with its recorded bytes."""
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
    """The newest whole checkpoint with resume state, and a line for each newer one that had to be passed over."""
    passed = []
    folders = [*numbered(run_dir, "step").values(), *numbered(run_dir, "epoch").values()]
    for folder in sorted(folders, key=_step_of, reverse=True):
        problem = damage(folder)
        if problem is None:
            return folder, passed
        passed.append(problem)
    return None, passed


def numbered(run_dir: Path, kind: str) -> dict[int, Path]:
    """The checkpoints of a kind by their numbers, in order."""
    found = run_dir.iterdir() if run_dir.is_dir() else []
    return dict(sorted((int(m[2]), p) for p in found if (m := _NAME.fullmatch(p.name)) and m[1] == kind))


def _step_of(folder: Path) -> tuple[float, float]:
    """(step, epoch) that a checkpoint was written after; one that does not say comes last, and is passed over."""
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
            raise BadInput(f"{source.parent / problem}; it is neither a run nor a whole checkpoint of one")
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
