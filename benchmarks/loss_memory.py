"""InfoNCE with its gradient: dense (autograd through the whole similarity matrix) against our tiles.

    python benchmarks/loss_memory.py
    python benchmarks/loss_memory.py --largest 16384 --dimension 768

Batches double from --smallest to --largest; one JSON line per case. Each case runs in its own process after a small
warm-up; seconds is the best of --repeats, extra_gib the most resident memory above what the process held with its
inputs. Dense stops where the three (b, b) fp32 matrices that autograd holds at once would exceed --dense-limit.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
from common import cores, emit, environment, machine, use_cores

TEMPERATURE = 0.05
WARM_UP = 256  # rows; loads kernels and starts threads


def dense(queries, documents):
    import torch.nn.functional as F

    target = _arange(queries)
    return F.cross_entropy(queries @ documents.T / TEMPERATURE, target, reduction="sum")


def tiled(queries, documents):
    from trainer.loss.info_nce import info_nce

    rows = _arange(queries)
    return info_nce(queries, documents, rows, rows, TEMPERATURE).loss


def _arange(queries):
    import torch

    return torch.arange(queries.shape[0])


LOSSES = {"dense": dense, "tiled": tiled}


def gradients(loss, batch: int, dimension: int):
    """A function that computes the loss and both gradients once; the inputs exist before it is called."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    made = [F.normalize(torch.randn(batch, dimension), dim=1).requires_grad_() for _ in range(2)]

    def once() -> float:
        value = loss(*made)
        torch.autograd.grad(value, made)
        return value.item() / batch

    return once


def measure(name: str, batch: int, dimension: int, repeats: int) -> dict:
    """One case, in this process."""
    gradients(LOSSES[name], WARM_UP, dimension)()
    once = gradients(LOSSES[name], batch, dimension)
    before, seconds, value = _forget_peak(), [], 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        value = once()
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "extra_gib": (_peak() - before) / 2**30, "mean_loss": value}


def _forget_peak() -> int:
    """Resident bytes now; on Linux the recorded peak falls back to them."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return psutil.Process().memory_info().rss


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_its_own_process(args, name: str, batch: int) -> dict:
    case = [name, str(batch), str(args.dimension), str(args.repeats)]
    command = [sys.executable, __file__, "--case", *case]
    done = subprocess.run(command, env=environment(args.threads), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", type=int, default=2048)
    parser.add_argument("--largest", type=int, default=65536)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--dense-limit", type=float, default=6.0, metavar="GIB")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(cores()))
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        name, *numbers = args.case
        print(json.dumps(measure(name, *map(int, numbers))))
        return
    use_cores(args.threads)
    emit(machine=machine(args.threads))
    batch = args.smallest
    while batch <= args.largest:
        for name in LOSSES:
            if name == "dense" and 3 * 4 * batch**2 > args.dense_limit * 2**30:
                continue
            emit(loss=name, batch=batch, dimension=args.dimension, **in_its_own_process(args, name, batch))
        batch *= 2


if __name__ == "__main__":
    main()
