"""Builds the exact command that starts a run on an engine. Pure: starts no process, reads nothing of the machine."""

import shlex
import sys
from dataclasses import dataclass, field

from data_prep.common.errors import BadInput
from trainer.config.other_trainers import about_value
from trainer.distributed.deepspeed_json import config_folder
from trainer.distributed.engines import ENGINES, ONE_PROCESS, ZERO


@dataclass(frozen=True)
class Command:
    """A command line, and the environment variables to add to the present ones."""

    argv: list[str]
    environ: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environ.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True)
class Machine:
    """The devices of one machine."""

    gpus: int  # CUDA devices
    mps: bool  # has an Apple GPU
    cores: int  # usable CPU cores


@dataclass(frozen=True)
class Nodes:
    """One node of several."""

    count: int
    rank: int
    address: str  # of node 0, where rank 0 listens
    port: int
    interface: str = ""  # network card that leads there; empty: the libraries choose


MASTER_PORT = 29500
# torchrun, also inside `accelerate launch`, reads its flags from PET_<FLAG> as well. Without them SIGUSR1 ends it and
# orphans its ranks, and it kills ranks that take more than 30 seconds to write a checkpoint.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
SHUTDOWN_SECONDS = 600
TORCHRUN = {"PET_SIGNALS_TO_HANDLE": SIGNALS, "PET_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}
# flags of accelerate
NO_DYNAMO = ("--dynamo_backend", "no")  # for ddp: stated, so that accelerate does not announce its default
NO_SSH = ("--deepspeed_multinode_launcher", "standard")  # others start ranks over ssh, and write secrets to a file


def choose(engine: str, processes: int | None, machine: Machine, device: str, nodes: int = 1) -> tuple[str, int]:
    """Returns engine and processes per node; chooses them for `auto` and None.

    device: train.device of the run file. nodes: machines like this one. Raises BadInput if the machine cannot run what
    was requested; the ranks are never fewer.
    """
    if engine not in (*ENGINES, "auto"):
        known = ("auto", *ENGINES)
        raise BadInput(f"--engine: {engine} is none of {', '.join(known)}.{about_value('engine', engine, known)}")
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
        engine = "ddp" if nodes > 1 else _auto(processes, gpus, machine.mps and device in ("auto", "mps"))
    if engine in ONE_PROCESS:
        if nodes > 1:
            raise BadInput(f"--engine: {engine} is one process; for {nodes} nodes use --engine ddp")
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
    """Returns cuda, mps or cpu: the device that every rank must use, so that none falls back to another."""
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
    nodes: Nodes | None = None,
) -> Command:
    """Builds the command for this machine: `accelerate launch`, or plain Python for one process.

    processes: on this machine. device: of every rank. port: a free one, where ranks meet. module: run by every rank
    with the trainer's flags. nodes: this node, if several run together; ranks then meet at its port.
    """
    total = processes * (nodes.count if nodes else 1)
    trainer = trainer_flags(run_file, overrides, engine, total, device, resume, module)
    return launched(trainer, engine, processes, machine, device, port, nodes)


def launched(
    arguments: list[str],
    engine: str,
    processes: int,
    machine: Machine,
    device: str,
    port: int,
    nodes: Nodes | None = None,
) -> Command:
    """Builds the command whose ranks run `arguments`; see build."""
    total = processes * (nodes.count if nodes else 1)
    if engine in ONE_PROCESS:
        return Command([sys.executable, *arguments])
    yaml = config_folder("accelerate_configs") / f"{engine}.yaml"
    flags = ["--num_processes", str(total)]
    environ = dict(TORCHRUN)
    if nodes:
        flags += ["--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)]
        flags += ["--main_process_ip", nodes.address, "--main_process_port", str(nodes.port)]
        flags += NO_SSH if engine in ZERO else ()
        if nodes.interface:  # else gloo takes the card of the host's name, which may not resolve
            card = {"GLOO_SOCKET_IFNAME": nodes.interface} if device == "cpu" else {}
            environ |= card or {"NCCL_SOCKET_IFNAME": f"={nodes.interface}"}  # = : that card, not each that begins so
    else:
        flags += ["--main_process_port", str(port)]
    flags += NO_DYNAMO if engine == "ddp" else ()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(yaml), *flags]
    environ |= device_environ(engine, device, max(1, machine.cores // processes))
    return Command([*launcher, *arguments], environ)


def trainer_flags(
    run_file: str, overrides: list[str], engine: str, total: int, device: str, resume: bool, module: str = "trainer"
) -> list[str]:
    """Arguments of every rank, after its interpreter or launcher. total: processes on all machines."""
    flags = ["-m", module, "--config", run_file, "--engine", engine, "--processes", str(total)]
    return [*flags, *(["--resume"] if resume else []), *overrides, f"train.device={device}"]


def device_environ(engine: str, device: str, threads: int) -> dict[str, str]:
    """Environment of ranks on a CPU; empty for cuda. threads: of each rank."""
    if device == "cuda":
        return {}
    # Ranks share the cores; without this, each would get one thread.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if engine == "ddp":
        variables["ACCELERATE_USE_CPU"] = "true"  # without it accelerate's ranks on a CPU each train alone
    else:
        variables["DS_ACCELERATOR"] = "cpu"  # the launcher itself imports DeepSpeed, which would warn of a missing GPU
    return variables
