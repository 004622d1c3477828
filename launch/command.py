"""The exact command that starts a run on an engine. Pure: starts no process, looks at no machine."""

import sys
from dataclasses import dataclass, field

from data_prep.common.errors import BadInput, nearest
from trainer.distributed.deepspeed_json import config_folder
from trainer.distributed.engines import ENGINES, ONE_PROCESS, ZERO


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


@dataclass(frozen=True)
class Nodes:
    """One node of several. address, port: where rank 0 listens, on node 0; interface: the network card that leads there
    (empty: left to the libraries)."""

    count: int
    rank: int
    address: str
    port: int
    interface: str = ""


# torchrun, also inside `accelerate launch`, reads its flags from PET_<FLAG> as well. By itself it dies of SIGUSR1 and
# orphans its ranks, and it kills ranks that take more than 30 seconds to write a checkpoint.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
SHUTDOWN_SECONDS = 600
TORCHRUN = {"PET_SIGNALS_TO_HANDLE": SIGNALS, "PET_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}


def choose(engine: str, processes: int | None, machine: Machine, device: str, nodes: int = 1) -> tuple[str, int]:
    """Engine and number of processes per node for `auto` and for what was left open.

    device: train.device of the run file; nodes: machines like this one.

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
    nodes: Nodes | None = None,
) -> Command:
    """`accelerate launch` for this machine. processes: on this machine; device: of every rank; port: a free one for the
    ranks to meet at.

    module: what every rank runs; it takes the trainer's flags. nodes: where several machines run it together; they meet
    at its port.
    """
    total = processes * (nodes.count if nodes else 1)
    trainer = trainer_flags(run_file, overrides, engine, total, device, resume, module)
    if engine in ONE_PROCESS:
        return Command([sys.executable, *trainer])
    yaml = config_folder("accelerate_configs") / f"{engine}.yaml"
    flags = ["--num_processes", str(total)]
    flags += nodes_flags(nodes, engine) if nodes else ["--main_process_port", str(port)]
    if engine == "ddp":  # stated, so that accelerate does not announce its default
        flags += ["--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(yaml), *flags]
    return Command([*launcher, *trainer], _environ(engine, processes, machine, device, nodes))


def trainer_flags(
    run_file: str, overrides: list[str], engine: str, total: int, device: str, resume: bool, module: str = "trainer"
) -> list[str]:
    """What every rank runs, after its interpreter or launcher. total: processes over all machines."""
    flags = ["-m", module, "--config", run_file, "--engine", engine, "--processes", str(total)]
    return [*flags, *(["--resume"] if resume else []), *overrides, f"train.device={device}"]


def nodes_flags(nodes: Nodes, engine: str) -> list[str]:
    """accelerate's flags for one machine of several."""
    flags = ["--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)]
    flags += ["--main_process_ip", nodes.address, "--main_process_port", str(nodes.port)]
    if engine in ZERO:  # every other one starts ranks over ssh and writes the environment, secrets too, to a file
        flags += ["--deepspeed_multinode_launcher", "standard"]
    return flags


def _environ(engine: str, processes: int, machine: Machine, device: str, nodes: Nodes | None) -> dict[str, str]:
    variables = dict(TORCHRUN)
    if nodes and nodes.interface:  # else gloo takes the one of the host's name, which need not resolve
        variables["GLOO_SOCKET_IFNAME" if device == "cpu" else "NCCL_SOCKET_IFNAME"] = nodes.interface
    return variables | device_environ(engine, device, max(1, machine.cores // processes))


def device_environ(engine: str, device: str, threads: int) -> dict[str, str]:
    """What ranks on a CPU need in their environment. threads: of each."""
    if device == "cuda":
        return {}
    # Ranks share the cores; left alone, each would get one thread.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if engine == "ddp":
        variables["ACCELERATE_USE_CPU"] = "true"  # without it accelerate's ranks on a CPU each train alone
    else:
        variables["DS_ACCELERATOR"] = "cpu"  # the launcher itself imports DeepSpeed, which would warn of a missing GPU
    return variables
