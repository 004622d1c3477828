"""The small runs of a curve: one ordinary run per share of the data and seed, each in a process of its own.

- FOLDER/fraction-0.1-seed-0/ is a run directory like any other; its run file lies in it as run.yaml.
- A run that is finished is not started again; one that was interrupted goes on from its newest checkpoint.
- FOLDER/base.json: what identifies the model before training and the evaluation set, and the evaluation of that model.
  The first run makes it, all others take it over (run_dir/before.py).
"""

import hashlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed, collect
from data_prep.common.files import check, sha256_of, whole_file, write_json
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.texts.tokenizer_rules import read_object
from trainer.blending.measured import key_of
from trainer.config.sections import RunConfig
from trainer.curves.child import run_child
from trainer.evaluation.metric_names import PAIR_METRICS
from trainer.model_folder.files import ADAPTER_WEIGHTS, weights_sha256
from trainer.planner.plan import total_steps
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs
from trainer.run_dir.before import measured_by, write_before
from trainer.run_dir.finished import is_finished
from trainer.run_dir.layout import RUN_FILE
from trainer.run_dir.queries import watched
from trainer.run_dir.record import check_resumable

BASE = "base.json"
# starts one run from its run file and returns the exit code
Start = Callable[[Path], int]


@dataclass(frozen=True)
class SmallRun:
    """A run on a share of the data."""

    fraction: float
    config: RunConfig
    pairs: int  # train rows of the share

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def is_finished(self) -> bool:
        return (self.folder / "run.json").is_file() and is_finished(self.folder)


@dataclass(frozen=True)
class Runs:
    """The runs of a curve, and what they have in common."""

    folder: Path
    by_seed: list[list[SmallRun]]  # sizes ascending
    rows: int  # train rows of the whole data
    base: dict  # hashes of the model before training and of the evaluation set

    def in_order(self) -> list[SmallRun]:
        """Returns the runs, small shares first, so that what is wrong shows early."""
        return [run for of_size in zip(*self.by_seed) for run in of_size]


def plan_runs(config: RunConfig, fractions: Sequence[float], seeds: int, folder: Path) -> tuple[Runs, list[str]]:
    """Returns the runs and the warnings of preflight. Raises BadInput with the problems of all runs."""
    check(_flag_problems(fractions, seeds))
    whole = Inputs(_config(config, max(fractions), config.train.seed, folder))
    warnings = check_run(whole, resume=True)
    problems: list[str] = []
    data = collect(problems, _evaluation_set, whole)
    by_seed = [
        [collect(problems, _small_run, config, share, config.train.seed + s, folder) for share in sorted(fractions)]
        for s in range(seeds)
    ]
    check([*dict.fromkeys(problems)])
    check(_no_growth(by_seed))
    return Runs(folder, by_seed, whole.shards.rows("train"), _identity(whole, data)), warnings


def _flag_problems(fractions: Sequence[float], seeds: int) -> list[str]:
    problems = [f"--fractions {share}: must lie above 0, and be at most 1" for share in fractions if not 0 < share <= 1]
    problems += [f"--fractions {share}: stands twice" for share in sorted(set(fractions)) if fractions.count(share) > 1]
    if len(set(fractions)) < 2:
        problems.append("--fractions: a curve needs two shares of the data or more, such as 0.1 0.25 0.5 1")
    if seeds < 1:
        problems.append(f"--seeds {seeds}: must be 1 or more")
    return problems


def _config(config: RunConfig, fraction: float, seed: int, folder: Path) -> RunConfig:
    changed = {
        "output_dir": str(folder / f"fraction-{fraction:g}-seed-{seed}"),
        "data": config.data.model_copy(update={"fraction": fraction}),
        "train": config.train.model_copy(update={"seed": seed}),
        "watch": config.watch.model_copy(update={"blend": None}),  # a curve is of what training gains
    }
    if config.checkpoint.keep_epochs is None:  # of many runs
        changed["checkpoint"] = config.checkpoint.model_copy(update={"keep_epochs": 1})
    return config.model_copy(update=changed)


def _small_run(config: RunConfig, fraction: float, seed: int, folder: Path) -> SmallRun:
    """Returns a run, once its plan exists and its folder can be used. Raises BadInput."""
    own = _config(config, fraction, seed, folder)
    inputs, out = Inputs(own), Path(own.output_dir)
    plan = inputs.plan
    steps = total_steps(plan, own.train.epochs, own.train.max_steps)
    if steps < plan.steps_per_epoch:
        of = f"the {plan.rows} pairs of share {fraction:g} take {plan.steps_per_epoch} steps, and a run ends after"
        mend = "raise train.max_steps, train.steps_per_epoch or train.epochs"
        raise BadInput(f"train: {of} {steps}, so it would not see all of them; {mend}")
    if (out / "run.json").is_file():
        check_resumable(out, own, plan.fingerprint)
    return SmallRun(fraction, own, plan.rows)


def _no_growth(by_seed: list[list[SmallRun]]) -> list[str]:
    return [
        f"--fractions {small.fraction:g} {large.fraction:g}: both hold {small.pairs} pairs with seed "
        f"{small.config.train.seed}; leave one out"
        for runs in by_seed
        for small, large in pairwise(runs)
        if small.pairs == large.pairs
    ]


def _evaluation_set(inputs: Inputs) -> RetrievalSet:
    """Returns the set whose queries the curve is about. Raises BadInput where none is measured query by query."""
    source, metric = watched(inputs.config.watch.metric)
    data = inputs.eval_sets.get(source)
    if isinstance(data, RetrievalSet) and metric not in PAIR_METRICS:
        return data
    why = f"{data.name} has no values of single queries" if data else inputs.no_eval
    raise BadInput(f"watch.metric: a curve needs {metric} of a retrieval set, and {why}; name one in data.eval")


def _identity(inputs: Inputs, data: RetrievalSet) -> dict:
    """Returns hashes of all that decides the evaluation before training."""
    files = [weights_sha256(Path(inputs.spec.base))]
    if start := inputs.config.model.lora.start:
        files.append(sha256_of(Path(start) / ADAPTER_WEIGHTS))
    return {"model": hashlib.sha256("".join(files).encode()).hexdigest(), "set": key_of(data)}


def make(runs: Runs, start: Start) -> None:
    """Makes the runs that are not finished, one after the other. Raises Failed where one does not end well."""
    path, base = runs.folder / BASE, _known_base(runs)
    runs.folder.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(order := runs.in_order(), 1):
        about = f"run {number} of {len(order)}: {run.pairs:,} pairs, seed {run.config.train.seed}"
        if run.is_finished:
            say(f"{about}: finished before")
        else:
            say(f"{about}, in {run.folder}")
            _prepare(run, base.get("measured"))
            if code := start(run.folder / RUN_FILE):
                raise _ended(run, code)
        if "measured" not in base and (measured := measured_by(run.folder)):
            base = base | {"measured": measured}
            write_json(path, base)


def _known_base(runs: Runs) -> dict:
    """Returns the content of base.json, which is new or of the same model and set. Raises BadInput for another."""
    path = runs.folder / BASE
    known = read_object(path)
    names = {"model": "the model before training", "set": "the evaluation set"}
    mend = "put that one back, or name another --output"
    check(
        [
            f"{path}: {name} is another one than that of the runs in this folder; {mend}"
            for key, name in names.items()
            if known and known.get(key) != runs.base[key]
        ]
    )
    if not known:
        runs.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, runs.base)
    return known or runs.base


def _prepare(run: SmallRun, measured: dict | None) -> None:
    """Writes what a run begins with into its folder; what a run that has begun holds stays."""
    if (run.folder / "run.json").is_file():
        return
    if measured:
        write_before(run.folder, measured)
    with whole_file(run.folder / RUN_FILE) as file:
        yaml.safe_dump(run.config.model_dump(mode="json"), file, sort_keys=False, allow_unicode=True)


def _ended(run: SmallRun, code: int) -> BaseException:
    if code in (130, -signal.SIGINT):
        return KeyboardInterrupt()
    return Failed(f"{run.folder}: the run ended with exit code {code}, see above; the same command goes on from there")


def starter(folder: Path, engine: str | None, processes: int | None) -> Start:
    """Returns the way to start a run: by `launch run`, on this machine."""
    world = ["--engine", engine] if engine else []
    world += ["--processes", str(processes)] if processes else []

    def start(run_file: Path) -> int:
        command = [sys.executable, "-m", "launch", "run", "--config", str(run_file), "--resume", *world]
        return run_child(command, folder)

    return start
