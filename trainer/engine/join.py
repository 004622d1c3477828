"""Ranks of a command that embeds and does not train: whole weights on each, no DeepSpeed and no Accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from data_prep.common.console import say
from trainer.distributed.collectives import World
from trainer.distributed.device import DTYPES, choose_kernels, chosen_precision, pick_device, precision_notes
from trainer.distributed.engines import LONE
from trainer.distributed.launcher_claims import check_launcher, local_rank, rank, world_size
from trainer.engine.start import Runtime, process_group, says_what_it_waits_for, share_cores

MINUTES = 720.0  # that a rank waits for another one, which may embed its share, or read a corpus for all


def alone(device: str, precision: str = "auto") -> Runtime:
    """Returns the runtime of one process. device: auto, cpu, mps or cuda. precision: see chosen_precision. Raises
    BadInput for a missing device."""
    kind = pick_device(device)
    choose_kernels(kind)
    return Runtime(None, World(), torch.device(kind), LONE[kind], _dtype(precision, kind))


@contextmanager
def joined(device: str, precision: str = "auto") -> Iterator[Runtime]:
    """Joins the ranks that a launcher started, and leaves their group in order; a command that was started plainly is
    one rank without a group. See alone(), and leaving.guarded_ranks, which comes before."""
    check_launcher()
    if "WORLD_SIZE" not in os.environ:
        yield alone(device, precision)
        return
    kind = pick_device(device, several=world_size() > 1)
    choose_kernels(kind)
    share_cores()
    where = torch.device(kind)
    if kind == "cuda":
        where = torch.device(kind, local_rank() % torch.cuda.device_count())  # srun may show each task its own
        torch.cuda.set_device(where)
    with says_what_it_waits_for(MINUTES):
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(minutes=MINUTES))
    world = World(rank(), world_size(), again="start it again")
    engine = "ddp" if world.size > 1 else LONE[kind]
    runtime = Runtime(None, world, where, engine, _dtype(precision, kind))
    with process_group(runtime, MINUTES):
        yield runtime


def _dtype(precision: str, device: str) -> torch.dtype | None:
    chosen = chosen_precision(precision, device)
    if precision_notes(chosen, device) and rank() == 0:
        say(f"--precision {chosen}: this machine computes it slower than fp32, for lack of hardware for it")
    return DTYPES[chosen]
