"""The exact command that starts a run on an engine. Pure: starts no process, looks at no machine."""

import sys
from dataclasses import dataclass, field

from data_prep.problems import BadInput, nearest
from trainer.topology import ENGINES, ONE_PROCESS, config_folder


@dataclass(frozen=True)
class Command:
    """argv and the environment variables it needs on top of the present ones."""

    argv: list[str]
    environ: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        import shlex

        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environ.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True)
class Machine:
    """What this machine offers. gpus: CUDA devices; mps: an Apple GPU; cores: usable CPU cores."""

    gpus: int
    mps: bool
    cores: int


def choose(engine: str, processes: int | None, machine: Machine, device: str) -> tuple[str, int]:
    """Engine and number of processes for `auto` and for what was left open. device: train.device of the run file.

    Raises BadInput where the machine cannot carry what was asked: never fewer ranks than asked.
    """
    if engine not in (*ENGINES, "auto"):
        known = ("auto", *ENGINES)
        raise BadInput(f"--engine: {engine} is none of {', '.join(known)}.{nearest(engine, known)}")
    if processes is not None and processes < 1:
        raise BadInput(f"--processes: must be at least 1 (given: {processes})")
    if engine in ("cpu", "mps") and device not in ("auto", engine):
        raise BadInput(f"--engine {engine}, but train.device is {device}; say one of them")
    if device == "cuda" and not machine.gpus:
        raise BadInput("train.device: cuda, but no CUDA device is usable here")
    if device == "mps" and not machine.mps:
        raise BadInput("train.device: mps, but this machine has no Apple GPU")
    gpus = machine.gpus if device in ("auto", "cuda") and engine not in ("cpu", "mps") else 0
    if engine == "auto":
        engine = _auto(processes, gpus, machine.mps and device in ("auto", "mps"))
    if engine in ONE_PROCESS:
        if processes not in (None, 1):
            raise BadInput(f"--processes: {engine} is one process; for {processes} use --engine ddp")
        if engine == "single_gpu" and not gpus:
            raise BadInput("--engine: single_gpu, but no CUDA device is usable here")
        if engine == "mps" and not machine.mps:
            raise BadInput("--engine: mps, but this machine has no Apple GPU")
        return engine, 1
    processes = processes or gpus or 2
    if gpus and processes > gpus:
        raise BadInput(f"--processes: {processes} asked for, {gpus} GPU(s) here; ranks never share a GPU")
    return engine, processes


def _auto(processes: int | None, gpus: int, mps: bool) -> str:
    if processes and processes > 1:
        return "ddp"
    if gpus:
        return "single_gpu" if gpus == 1 or processes == 1 else "ddp"
    return "mps" if mps else "cpu"


def device_of(engine: str, machine: Machine, asked: str) -> str:
    """cuda, mps or cpu: what the ranks of this engine must find, so that none of them falls back to another."""
    if engine in ("cpu", "mps"):
        return engine
    return "cuda" if machine.gpus and asked != "cpu" else "cpu"


def build(
    run_file: str,
    overrides: list[str],
    engine: str,
    processes: int,
    machine: Machine,
    device: str,
    resume: bool,
    port: int,
    module: str = "trainer",
) -> Command:
    """`accelerate launch` for this machine. device: of every rank; port: a free one for the ranks to meet at.

    module: what every rank runs; it takes the trainer's flags.
    """
    trainer = ["-m", module, "--config", run_file, "--engine", engine, "--processes", str(processes)]
    trainer += ["--resume"] if resume else []
    trainer += [*overrides, f"train.device={device}"]
    if engine in ONE_PROCESS:
        return Command([sys.executable, *trainer])
    yaml = config_folder("accelerate_configs") / f"{engine}.yaml"
    flags = ["--num_processes", str(processes), "--main_process_port", str(port)]
    if engine == "ddp":  # stated, so that accelerate does not announce its default
        flags += ["--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(yaml), *flags]
    return Command([*launcher, *trainer], _environ(engine, processes, machine, device))


def _environ(engine: str, processes: int, machine: Machine, device: str) -> dict[str, str]:
    if device == "cuda":
        return {}
    # Ranks share the cores; left alone, each would get one thread.
    variables = {"OMP_NUM_THREADS": str(max(1, machine.cores // processes))}
    if engine == "ddp":
        variables["ACCELERATE_USE_CPU"] = "true"  # without it accelerate's ranks on a CPU each train alone
    else:
        variables["DS_ACCELERATOR"] = "cpu"  # the launcher itself imports DeepSpeed, which would warn of a missing GPU
    return variables
