"""python -m launch slurm: turns flags into a checked Job, writes or submits its script, and follows it."""

import argparse
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from data_prep.common.console import result, say, say_next
from data_prep.common.errors import BadInput, Failed, collect
from data_prep.common.files import check, whole_file
from launch.before_start import few_rows, is_finished, rows_per_rank
from launch.command import Machine, choose
from launch.slurm.script import Job, Task, render
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.config.sections import RunConfig
from trainer.frontends.flat_json import load_run_file
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs

LOOK = 5.0  # seconds between two looks at a job
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_COMMA = re.compile(r",(?![^\[{]*[\]}])")  # not one inside brackets


def render_or_submit(args: argparse.Namespace) -> int:
    check_packages()
    job, configs = make_job(args)
    if args.submit and shutil.which("sbatch") is None:
        raise BadInput("--submit: there is no sbatch on this machine; render the script with --output FILE")
    for line in check_job(job, configs):
        say(line)
    script = render(job)
    path = Path(args.output) if args.output else Path(f"{job.name}.sbatch") if args.submit else None
    if path is None:
        result(script.rstrip("\n"))
        return 0
    with whole_file(path) as file:
        file.write(script)
    say(f"{path}: {len(job.tasks)} run(s) of {job.engine}, {job.nodes} node(s) x {job.ranks} rank(s) on {job.device}")
    if args.submit:
        return follow(submit(path), job)
    say_next("sbatch", path)
    return 0


def check_job(job: Job, configs: list[RunConfig]) -> list[str]:
    """Checks every run of a job as `launch run` does; returns what to print. Raises BadInput with every problem."""
    problems: list[str] = []
    lines: list[str] = []
    for config in configs:
        inputs = Inputs(config)  # resume: the output folder may hold an interrupted run
        warnings = collect(problems, check_run, inputs, True, False, job.engine)
        if is_finished(config.output_dir) and not job.resume:
            problems.append(
                f"output_dir: {config.output_dir} holds a finished run, so the job would train nothing; name another "
                "folder, or add --resume, with which finished runs are left as they are"
            )
        if warnings is not None:
            shape = inputs.plan.batch_size, job.nodes * job.ranks
            lines += [rows_per_rank(*shape), *few_rows(*shape), *warnings]
    check(list(dict.fromkeys(problems)))
    return list(dict.fromkeys(lines))


def make_job(args: argparse.Namespace) -> tuple[Job, list[RunConfig]]:
    """Returns the job of the flags, and the config of each of its runs. Raises BadInput with every problem."""
    problems = []
    for flag in ("nodes", "cpus_per_rank", "signal"):
        if getattr(args, flag) < 1:
            problems.append(f"--{flag.replace('_', '-')}: must be at least 1 (given: {getattr(args, flag)})")
    if args.gpus_per_node < 0:
        problems.append(f"--gpus-per-node: must not be negative (given: {args.gpus_per_node})")
    try:
        limit = seconds(args.time)
        if args.signal >= limit:
            problems.append(f"--signal: {args.signal} s is not before the limit of {limit} s")
    except BadInput as error:
        problems += error.problems
    sweeps = [_sweep(text, problems) for text in args.sweep]
    check(problems)
    config = load_run_file(args.config, args.overrides)
    machine = Machine(args.gpus_per_node, False, args.cpus_per_rank)
    engine, ranks = choose(args.engine, args.ranks_per_node, machine, config.train.device, args.nodes)
    combinations = list(itertools.product(*sweeps))
    tasks = [
        Task(overrides, f"{config.output_dir.rstrip('/')}/{number}" if args.sweep else config.output_dir)
        for number, overrides in enumerate(combinations)
    ]
    configs = [
        load_config(args.config, [*args.overrides, *task.overrides, f"output_dir={task.output_dir}"]) for task in tasks
    ]
    name = re.sub(r"[^\w.-]", "-", Path(config.output_dir).name) or "embedfleet"
    job = Job(
        name=name, run_file=args.config, engine=engine, tasks=tuple(tasks),
        overrides=tuple(args.overrides), nodes=args.nodes, ranks=ranks, gpus=args.gpus_per_node,
        cpus_per_rank=args.cpus_per_rank, time=args.time, signal=args.signal, requeue=args.requeue, resume=args.resume,
        partition=args.partition, container=args.container, sbatch=tuple(args.sbatch), launcher=args.launcher,
        rendered_by=args.typed, python=args.python or ("python" if args.container else sys.executable),
    )  # fmt: skip
    return job, configs


def _sweep(text: str, problems: list[str]) -> list[str]:
    """Expands section.key=A,B to [section.key=A, section.key=B]."""
    key, _, values = text.partition("=")
    parts = [value.strip() for value in _COMMA.split(values)]
    if not key or not all(parts):
        problems.append(f"--sweep: {text} is not section.key=A,B")
    if key == "output_dir":
        problems.append("--sweep: each run of an array gets an output_dir of its own; sweep over something else")
    return [f"{key}={value}" for value in parts]


def seconds(limit: str) -> int:
    """Converts sbatch's time limit to seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises BadInput."""
    match = _TIME.fullmatch(limit)
    if not match:
        raise BadInput(f"--time: {limit} is no time limit of sbatch; write minutes (30), 04:00:00 or 1-12:00:00")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, secs = [*parts, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + secs
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def submit(script: Path) -> str:
    """Submits the script; returns the number of the job. Raises Failed with sbatch's error."""
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"sbatch {shlex.quote(str(script))}: {done.stderr.strip()}")
    number = done.stdout.strip().partition(";")[0]
    say(f"job {number}; to end it: scancel {number}")
    return number


def follow(number: str, job: Job) -> int:
    """Prints a job's states, and a single run's log, until it has left the queue; returns 0 if every run finished."""
    log = Path(f"{job.tasks[0].output_dir.rstrip('/')}-logs") / number / "node-0.out"
    shown, offset = "", 0
    try:
        while (state := _state(number)) is not None:
            if state != shown:
                say(f"job {number}: {state}")
                shown = state
            if len(job.tasks) == 1:
                offset = _show_new(log, offset)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        say(f"job {number} goes on; to end it: scancel {number}")
        return 130
    if len(job.tasks) == 1:
        _show_new(log, offset)
    missing = [task.output_dir for task in job.tasks if not is_finished(task.output_dir)]
    if missing:
        say(f"job {number} ended, but these runs are not finished: {', '.join(missing)}; see their -logs folders")
        return 1
    say(f"job {number}: finished, {', '.join(task.output_dir for task in job.tasks)}")
    return 0


def _state(number: str) -> str | None:
    """Counts the tasks by state; None if the job has left the queue."""
    done = subprocess.run(["squeue", "-h", "-r", "-j", number, "-o", "%T"], capture_output=True, text=True, check=False)
    if done.returncode:
        return None if "Invalid job id" in done.stderr else f"squeue: {done.stderr.strip()}"
    states = done.stdout.split()
    if not states:
        return None
    counts = {state: states.count(state) for state in sorted(set(states))}
    return ", ".join(state if len(states) == 1 else f"{count} {state}" for state, count in counts.items())


def _show_new(path: Path, offset: int) -> int:
    """Prints what a file, which may not exist yet, holds after `offset` bytes; returns the bytes shown in all."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            new = file.read()
    except FileNotFoundError:
        return offset
    sys.stderr.write(new.decode("utf-8", "replace"))
    sys.stderr.flush()
    return offset + len(new)
