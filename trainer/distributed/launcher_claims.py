"""The planned world against the actual one: several launch paths fall back silently. Never imports torch."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.paths import user_path
from trainer.distributed.deepspeed_json import config_folder, read_ds_json, zero_engine
from trainer.distributed.engines import ENGINES, ONE_PROCESS, ZERO

# launcher that starts tasks without making them ranks -> variable with their number
TASKS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}


# What a launcher tells each process it starts.
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # and the least value
YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0", "")  # as accelerate reads them
SWITCHES = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED")


def rank() -> int:
    """Returns the rank that the launcher gave this process, 0 without a launcher. World.rank is the group's own."""
    return _number("RANK", 0)


def world_size() -> int:
    """Returns the number of processes that the launcher started, 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Returns the rank among the processes of this machine, 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Returns the number of processes that the launcher started on this machine, 1 without a launcher."""
    return _number("LOCAL_WORLD_SIZE", 1)


def forces_cpu(environ: Mapping[str, str] | None = None) -> bool:
    """True where the launcher makes accelerate use the CPU."""
    return _is_on("ACCELERATE_USE_CPU", environ)


def uses_deepspeed() -> bool:
    """True where the launcher makes accelerate use DeepSpeed."""
    return _is_on("ACCELERATE_USE_DEEPSPEED")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    return int(text) if is_whole(text) else default  # check_launcher refuses any other text


def is_whole(text: str) -> bool:
    """Returns True for a number of processes, ports or tasks: digits, and no more than a machine can mean."""
    return text.isdecimal() and len(text) < 10


def _is_on(name: str, environ: Mapping[str, str] | None = None) -> bool:
    return (os.environ if environ is None else environ).get(name, "").lower() in YES


def check_launcher(environ: Mapping[str, str] | None = None) -> None:
    """Raises BadInput for variables that no launcher leaves like this: each with its value and the mend."""
    check(launcher_problems(os.environ if environ is None else environ))


def launcher_problems(environ: Mapping[str, str]) -> list[str]:
    """Returns a line for each launcher variable that is no number, or that others contradict."""
    problems = []
    for name, least in (NUMBERS | dict.fromkeys(TASKS.values(), 1)).items():
        if name in environ and not (is_whole(environ[name].strip()) and int(environ[name]) >= least):
            problems.append(f"{name}={environ[name]!r} in the environment: not a whole number from {least} up; ")
    problems += [
        f"{name}={environ[name]!r} in the environment: neither true nor false; "
        for name in SWITCHES
        if environ.get(name, "").lower() not in (*YES, *NO)
    ]
    if problems:
        return [problem + f"unset {problem.partition('=')[0]}" for problem in problems]
    return _contradictions(environ)


def _contradictions(environ: Mapping[str, str]) -> list[str]:
    world, rank = int(environ.get("WORLD_SIZE", 1)), int(environ.get("RANK", 0))
    mend = f"unset {' '.join(name for name in OF_A_RANK if name in environ)}"
    launcher = "or let a launcher set all of them (python -m launch run, torchrun)"
    missing = [name for name in ("RANK", "MASTER_ADDR") if not environ.get(name)]
    if "WORLD_SIZE" in environ and missing:
        text = f"WORLD_SIZE={world} in the environment, but no {' and no '.join(missing)}: left over, as no launcher"
        return [f"{text} started this process; {mend}, {launcher}"]
    if rank >= world:
        of = f"WORLD_SIZE={world}" if "WORLD_SIZE" in environ else "no WORLD_SIZE"
        return [f"RANK={rank} in the environment, but {of}: no such rank; {mend}, {launcher}"]
    local, here = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", world))
    if "WORLD_SIZE" in environ and local >= here:
        return [f"LOCAL_RANK={local} in the environment, but {here} rank(s) on this machine; {mend}, {launcher}"]
    if here > world:
        return [f"LOCAL_WORLD_SIZE={here} in the environment, but {world} rank(s) in all; {mend}, {launcher}"]
    port = environ.get("MASTER_PORT", "")
    if "WORLD_SIZE" in environ and port == "0":
        passed_on = "torchrun --master-port 0 gives the ranks this 0, and they would wait for each other for ever"
        return [f"MASTER_PORT=0 in the environment: {passed_on}; name a free port or use --standalone, else {mend}"]
    if "WORLD_SIZE" in environ and port and not (is_whole(port) and 0 < int(port) < 65536):
        return [f"MASTER_PORT={port!r} in the environment: not a port; {mend}, {launcher}"]
    return []


def check_shell(one_process: bool, several_nodes: bool, environ: Mapping[str, str] | None = None) -> None:
    """Raises BadInput for variables of this shell with which the ranks of `launch run` would be others.

    They inherit the shell's environment. one_process: no launcher replaces RANK and the like on the way to the trainer.
    several_nodes: their number, this node's rank and the address of node 0 are stated, which replaces torchrun's own.
    """
    environ = os.environ if environ is None else environ
    check(_alone(environ) if one_process else [] if several_nodes else of_torchrun(environ))


def _alone(environ: Mapping[str, str]) -> list[str]:
    problems = launcher_problems(environ)
    if problems or int(environ.get("WORLD_SIZE", 1)) == 1:
        return problems
    names = " ".join(name for name in OF_A_RANK if name in environ)
    return [
        f"WORLD_SIZE={environ['WORLD_SIZE']} in the environment: the one process of this engine would wait for others "
        f"that nobody starts; unset {names}, or give --engine ddp --processes {environ['WORLD_SIZE']}"
    ]


def of_torchrun(environ: Mapping[str, str]) -> list[str]:
    """Returns a line for each variable that makes torchrun, also inside `accelerate launch`, wait for other nodes."""
    fits = {
        "PET_NNODES": re.compile("1|1:1"),
        "PET_NODE_RANK": re.compile("0"),
        "PET_MASTER_ADDR": re.compile(
            "|".join(map(re.escape, ("localhost", "127.0.0.1", "::1", socket.gethostname())))
        ),
        "PET_RDZV_ENDPOINT": re.compile(r"(localhost|127\.0\.0\.1)(:\d*)?"),
    }
    wrong = [name for name, pattern in fits.items() if environ.get(name) and not pattern.fullmatch(environ[name])]
    return [
        f"{name}={environ[name]} in the environment: torchrun would wait there for other nodes; unset {name}, or say "
        "on each node: --nnodes N --node-rank R --master HOST"
        for name in wrong
    ]


@dataclass(frozen=True)
class Claim:
    """One statement about the planned world. None: it states nothing about that."""

    by: str  # where it is stated
    processes: int | None = None
    engine: str | None = None


def claims(engine: str | None, processes: int | None, environ: Mapping[str, str] | None = None) -> list[Claim]:
    """Collects the statements about the planned world: our own flags, the launcher's environment and command."""
    environ = os.environ if environ is None else environ
    statements = []
    if engine or processes:
        statements.append(Claim("the flags --engine/--processes", processes, engine))
    if "WORLD_SIZE" in environ:
        statements.append(Claim("WORLD_SIZE in the environment", int(environ["WORLD_SIZE"])))
    else:  # no launcher: the tasks do not know each other
        tasks = {by: int(environ[name]) for by, name in TASKS.items() if environ.get(name, "1") != "1"}
        statements += [Claim(by, count) for by, count in tasks.items()]
    for command in _ancestor_commands():
        claim = accelerate_claim(command)
        if claim:
            statements.append(claim)
            break
    return statements


def fewer_nodes(processes: int, environ: Mapping[str, str] | None = None) -> list[str]:
    """Returns a line where an elastic torchrun (--nnodes MIN:MAX) runs with fewer nodes than MAX."""
    environ = os.environ if environ is None else environ
    for command in _ancestor_commands():
        most = most_nodes(command, environ)
        wanted = most * int(environ.get("LOCAL_WORLD_SIZE", "1"))
        if processes < wanted:
            return [
                f"torchrun went on without all of its {most} nodes: {processes} of {wanted} processes train, each on a "
                f"larger part of the same global batch; --nnodes {most} waits for all, and --processes {wanted} behind "
                "trainer refuses fewer"
            ]
    return []


def most_nodes(command: list[str], environ: Mapping[str, str]) -> int:
    """MAX of torchrun's --nnodes MIN:MAX; 0 for any other command."""
    if not {"torchrun", "torch.distributed.run"} & {Path(part).name for part in command}:
        return 0
    words = " ".join(command).replace("=", " ").split()
    nodes = dict(pairwise(words)).get("--nnodes") or environ.get("PET_NNODES", "")
    most = nodes.rpartition(":")[2] if ":" in nodes else ""
    return int(most) if is_whole(most) else 0


def _ancestor_commands() -> list[list[str]]:
    import psutil

    commands = []
    for process in psutil.Process().parents():
        try:
            commands.append(process.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return commands


def accelerate_claim(command: list[str]) -> Claim | None:
    """Returns the claim of an `accelerate launch …` command line, None for another command. Its simple launcher
    (MULTI_CPU, --cpu) does not pass --num_processes on to its child: the parent's command line is the only source."""
    options = _accelerate_options(command)
    if options is None:
        return None
    config = _launch_yaml(options.get("config_file"))
    kind = str(config.get("distributed_type", "NO")).upper()
    processes = _count(options.get("num_processes") or config.get("num_processes") or 0) or None
    machines = _count(options.get("num_machines") or config.get("num_machines") or 1)
    if processes is None and machines > 1:
        processes = machines
    engine = None
    if kind == "DEEPSPEED" or "use_deepspeed" in options:
        engine = _zero_stage(options, config)
    elif kind not in ("NO", "MULTI_GPU", "MULTI_CPU") or "use_fsdp" in options:
        engine = "fsdp" if "use_fsdp" in options else kind.lower()  # none of ours: check_world refuses it
    elif (kind.startswith("MULTI_") or "multi_gpu" in options) and processes not in (None, 1):
        engine = "ddp"
    elif _is_ours(options.get("config_file")):  # a device that is missing would be replaced by another
        engine = Path(options["config_file"]).stem
    return Claim("the command `accelerate launch`", processes, engine)


def _count(value: Any) -> int:
    """Returns a number of processes or machines, 0 for what accelerate itself refuses."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _accelerate_options(command: list[str]) -> dict[str, str] | None:
    names = [Path(part).name for part in command]
    if "accelerate" in names and "launch" in names[names.index("accelerate") :]:
        rest = command[names.index("launch", names.index("accelerate")) + 1 :]
    elif "accelerate.commands.launch" in names or "accelerate-launch" in names:
        name = "accelerate-launch" if "accelerate-launch" in names else "accelerate.commands.launch"
        rest = command[names.index(name) + 1 :]
    else:
        return None
    options: dict[str, str] = {}
    i = 0
    while i < len(rest) and rest[i].startswith("--") and rest[i] not in ("--module",):
        name, _, value = rest[i].removeprefix("--").partition("=")
        if not value and i + 1 < len(rest) and not rest[i + 1].startswith("-") and name not in _SWITCHES:
            i += 1
            value = rest[i]
        options[name.replace("-", "_")] = value
        i += 1
    return options


_SWITCHES = ("cpu", "multi_gpu", "use_deepspeed", "use_fsdp", "quiet", "debug", "same_network", "no_python", "tpu")


def _launch_yaml(path: str | None) -> dict:
    """The accelerate YAML, or the user's default one where no file was named; {} where there is none."""
    return read_launch_yaml(user_path(path or accelerate_default()))


def read_launch_yaml(path: Path) -> dict:
    """Returns the values of an accelerate YAML; {} for a file that accelerate itself cannot read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return {}  # accelerate itself reports it
    return values if isinstance(values, dict) else {}


def accelerate_default(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's default YAML, which `accelerate launch` reads if no file is named."""
    home = user_path(environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return home / "accelerate" / "default_config.yaml"


def _is_ours(yaml_file: str | None) -> bool:
    """True for the accelerate YAML of one of our engines of one process."""
    if yaml_file is None or Path(yaml_file).stem not in ONE_PROCESS:
        return False
    return Path(yaml_file).resolve().parent == config_folder("accelerate_configs")


def _zero_stage(options: Mapping[str, str], config: Mapping) -> str | None:
    section = config.get("deepspeed_config")
    section = section if isinstance(section, dict) else {}
    name = options.get("deepspeed_config_file") or section.get("deepspeed_config_file")
    if name:
        try:
            values = read_ds_json(str(name))
        except BadInput:
            return None  # start() reports it
        return zero_engine(values.get("zero_optimization", {}))
    stage = options.get("zero_stage") or section.get("zero_stage")
    return f"zero{stage}" if stage else None


class OtherWorld(BadInput):
    """The world is not the planned one. Raised by every rank, with the same words."""

    on_every_rank = True


def check_world(actual_processes: int, actual_engine: str, planned: list[Claim], run_file: str) -> None:
    """Raises BadInput, naming what to run instead, unless number of processes and engine are the planned ones."""
    problems = []
    for claim in planned:
        if claim.processes and claim.processes != actual_processes:
            problems.append(f"{claim.by} asked for {claim.processes} process(es), the world has {actual_processes}")
        alone = claim.engine == "ddp" and claim.processes == 1 == actual_processes  # data parallelism of one
        if claim.engine and claim.engine != actual_engine and not alone:
            problems.append(f"{claim.by} asked for engine {claim.engine}, the engine is {actual_engine}")
    if not problems:
        return
    processes = max((c.processes for c in planned if c.processes), default=actual_processes)
    default = "ddp" if processes > 1 else "auto"
    engine = next((c.engine for c in planned if c.engine in ENGINES), default)
    if engine in ONE_PROCESS and processes > 1:  # asked for both, which cannot be: keep the number
        engine = "ddp"
    count = f" --processes {processes}" if processes > 1 else ""
    raise OtherWorld(
        f"{'; '.join(problems)}. Nothing was trained. "
        f"Run instead: python -m launch run --config {run_file} --engine {engine}{count}"
        f"{_why(actual_processes, actual_engine, engine)}"
    )


def _why(processes: int, actual: str, engine: str) -> str:
    if engine in ZERO and actual not in ZERO:
        return "\nAccelerate drops DeepSpeed silently where it has to use the CPU (--cpu, use_cpu or its variable)."
    if processes == 1:
        return (
            "\nA process is alone unless a launcher joins it to others: python -m trainer by itself, a task of srun or "
            "mpirun (on SLURM: python -m launch slurm), accelerate with MULTI_CPU or --cpu without an MPI hostfile."
        )
    return ""
