"""Joins the process group and builds the planned engine, or refuses with what to run instead."""

import os
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.workers import cores
from trainer.config.sections import OptimConfig, RunConfig
from trainer.distributed.collectives import World
from trainer.distributed.deepspeed_json import zero_engine
from trainer.distributed.device import DTYPES, choose_kernels, pick_device
from trainer.distributed.engines import ENGINES, LONE, ZERO
from trainer.distributed.launcher_claims import (
    OF_A_RANK,
    Claim,
    check_launcher,
    check_world,
    claims,
    forces_cpu,
    local_world_size,
    rank,
    uses_deepspeed,
    world_size,
)
from trainer.distributed.stop import Stopped
from trainer.distributed.watch import Watch
from trainer.engine.protocol import Engine
from trainer.engine.torch_engine import TorchEngine
from trainer.engine.zero_engine import ZeroEngine, load_models_whole, plugin
from trainer.model.embedder import Embedder

PATIENCE = 0.9  # of the timeout: a Watch speaks before NCCL aborts the process
SILENCE = 15.0  # seconds that joining the group may take before a rank says what it waits for


@dataclass
class Runtime:
    """One rank's view of the run."""

    accelerator: object  # None in a lone process
    world: World
    device: torch.device
    engine: str  # one of ENGINES
    dtype: torch.dtype | None  # of the matrix products; None: fp32

    @property
    def is_main(self) -> bool:
        return self.world.rank == 0

    def build(self, embedder: Embedder, optim: OptimConfig, by_chunk: bool = False) -> Engine:
        """by_chunk: of train.gradient_reduction, see ZeroEngine."""
        if self.engine in ZERO:
            return ZeroEngine(self.accelerator, embedder, optim, self.world, self.dtype, by_chunk)
        return TorchEngine(embedder, optim, self.world, self.device, self.dtype)


def start(config: RunConfig, run_file: str, engine: str | None = None, processes: int | None = None) -> Runtime:
    """Joins the process group and checks that the world is the planned one, before anything is loaded. Raises BadInput
    with what to run instead. engine, processes: the trainer's flags; the launcher's environment and command line are
    compared with the actual world as well."""
    check_launcher()
    planned = claims(engine, processes)
    if any(claim.engine and claim.engine not in ENGINES for claim in planned):  # accelerate itself may fail of it
        check_world(world_size(), "ddp", planned, run_file)
    ds_json = _deepspeed_json(engine, planned, run_file)
    _check_environment(config)
    several = world_size() > 1 or ds_json is not None
    kind = pick_device(config.train.device, engine, several)
    choose_kernels(kind, config.train.precision, config.train.deterministic)
    if "WORLD_SIZE" not in os.environ and not ds_json:
        # no group to join, and Accelerate's import stays out of the time to start
        check_world(1, LONE[kind], planned, run_file)
        device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        return Runtime(None, World(), device, LONE[kind], DTYPES[config.train.precision])
    share_cores()
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if kind != "cuda":  # one device for accelerate, DeepSpeed and us, whatever else is in the machine
        os.environ["ACCELERATE_TORCH_DEVICE"] = kind
    deepspeed_plugin = None
    if ds_json:
        deepspeed_plugin = plugin(ds_json, config.optim.max_grad_norm, torch.device(kind))
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        if "WORLD_SIZE" not in os.environ:
            _describe_lone_process()
    # Without an explicit backend each CPU rank under DeepSpeed would silently train alone.
    backend = "nccl" if kind == "cuda" else "gloo"
    timeout = timedelta(minutes=config.train.timeout_minutes)  # a cut link is noticed by this alone
    handlers = [InitProcessGroupKwargs(backend=backend, timeout=timeout)] if "WORLD_SIZE" in os.environ else []
    with says_what_it_waits_for(config.train.timeout_minutes):
        accelerator = Accelerator(
            cpu=kind == "cpu" and not ds_json,
            mixed_precision="no",  # the model autocasts by itself, the same on every engine
            deepspeed_plugin=deepspeed_plugin,
            kwargs_handlers=handlers,
        )
    if ds_json:
        load_models_whole()
    world = World(accelerator.process_index, accelerator.num_processes)
    actual = _actual_engine(accelerator, world)
    if actual not in ENGINES:
        planned.append(Claim("embedfleet", engine="ddp"))
    check_world(world.size, actual, planned, run_file)
    return Runtime(accelerator, world, accelerator.device, actual, DTYPES[config.train.precision])


@contextmanager
def process_group(runtime: Runtime, patience_minutes: float):
    """Leaves the group in order: without the last barrier some ranks abort while others are still at work.
    patience_minutes: train.timeout_minutes, after which a collective fails; where it cannot by itself, a Watch does."""
    failed = True
    watch = Watch(runtime.world, PATIENCE * 60 * patience_minutes) if _fails_in_silence() else None
    try:
        yield
        failed = False
    except Stopped:  # on every rank, after the same step
        failed = False
        raise
    except BaseException as error:
        if watch:
            watch.failed(error)
        lost = runtime.world.lost(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            raise
        raise lost from error
    finally:
        # After a failure other ranks may sit in a collective: leaving the group would wait for them. The process ends.
        if torch.distributed.is_initialized() and not failed:
            runtime.world.barrier()
            if watch:
                watch.stop()
            torch.distributed.destroy_process_group()


def _fails_in_silence() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"


def _deepspeed_json(engine: str | None, planned: list[Claim], run_file: str) -> str | None:
    """Returns the DeepSpeed JSON to use: the launcher's, or the one of --engine zeroN under torchrun."""
    by_launcher = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    under_deepspeed = uses_deepspeed()
    if under_deepspeed and by_launcher == "none":
        raise BadInput(
            "the accelerate YAML describes ZeRO inline; name a deepspeed_config_file instead "
            f"(ours: accelerate_configs/{', '.join(f'{name}.yaml' for name in ZERO)}); where no accelerate runs: unset "
            "ACCELERATE_USE_DEEPSPEED"
        )
    name = by_launcher if under_deepspeed else (f"{engine}.json" if engine in ZERO else None)
    if name and forces_cpu():
        # Accelerate would drop DeepSpeed here without a word.
        asked = next((c.engine for c in planned if c.engine), None) or "the DeepSpeed engine"
        raise BadInput(
            f"ACCELERATE_USE_CPU makes accelerate drop DeepSpeed, but {asked} was asked for. Nothing was trained. "
            f"Run instead: env -u ACCELERATE_USE_CPU python -m launch run --config {run_file} --engine {asked}"
        )
    return name


def _check_environment(config: RunConfig) -> None:
    """Raises BadInput where the accelerate YAML states facts that the run file owns."""
    stated = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if stated not in ("no", config.train.precision):
        raise BadInput(
            f"mixed_precision: {stated} in the accelerate YAML, train.precision: {config.train.precision} in the run "
            "file; the run file owns the precision: remove it from the YAML, or unset ACCELERATE_MIXED_PRECISION"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise BadInput(
            f"gradient_accumulation_steps: {steps} in the accelerate YAML; raise train.batch_size in the run file "
            "instead (accumulation there adds no negatives), and unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
        )


@contextmanager
def says_what_it_waits_for(minutes: float):
    """Names the ranks' meeting point where joining takes long: variables that were left over lead to nobody."""
    names = [name for name in OF_A_RANK if name in os.environ]
    text = (
        f"rank {rank()} of {world_size()} waits for the others at {os.environ.get('MASTER_ADDR')}:"
        f"{os.environ.get('MASTER_PORT')}, for up to {minutes:g} minutes; if no launcher runs: unset {' '.join(names)}"
    )
    timer = threading.Timer(SILENCE, say, [text])
    timer.daemon = True
    if world_size() > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def share_cores() -> None:
    """Ranks of one machine share its cores. torchrun sets OMP_NUM_THREADS=1 for each where it is not set."""
    ranks = local_world_size()
    if ranks > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // ranks))


def _describe_lone_process() -> None:
    """Describes a world of one to DeepSpeed, which needs a process group even without a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(lone)


def _actual_engine(accelerator, world: World) -> str:
    """Returns the name of the engine that accelerate set up; of one that is none of ours, accelerate's name."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return zero_engine(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"])
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return kind.lower()  # none of ours
    return "ddp" if world.size > 1 else LONE[accelerator.device.type]
