"""Measures what ranks reach, for the planner: `python -m launch doctor --measure` starts this on every node.

Takes the trainer's flags, trains nothing. Every figure is taken on all ranks at the same time, because they share
cores, memory and links, and is that of the slowest. Rank 0 writes speed.json into the folder of the run file.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data_prep.common.console import result
from data_prep.common.files import write_json
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.distributed.collectives import World
from trainer.distributed.launcher_claims import local_world_size
from trainer.engine.start import Runtime, process_group, start
from trainer.frontends.command_line import fail, parser
from trainer.train.token_budget import free_bytes

OUTPUT = "speed.json"
ROUNDS, STEADY = 5, 0.5  # calls at least; seconds at least, so that a moment of a shared machine is not its rate
MOST_ROUNDS = 100
LONG = 1.0  # seconds of a call that is not repeated, such as bf16 products on a CPU without units for them
WIDTH = {"cuda": 4096, "mps": 2048, "cpu": 768}  # of the products: a layer of a model that such a device trains
TOKENS = {"cuda": 8192, "mps": 4096, "cpu": 2048}  # of a chunk
NUMBERS = (1 << 10, 1 << 16, 1 << 19, 1 << 21, 1 << 23)  # fp32 numbers of the collectives
STARTS = 200  # operations whose start is timed
ON_DISK = 1 << 26  # bytes written and read


def measure(runtime: Runtime, folder: Path) -> dict:
    """Measures everything. Collective."""
    world, device = runtime.world, runtime.device
    width, tokens = WIDTH[device.type], TOKENS[device.type]
    rates = {
        "half": _products(world, device, torch.bfloat16, tokens, width),
        "single": _products(world, device, torch.float32, tokens, width),
        "memory": _memory(world, device, tokens * width),
        "started": _started(world, device),
        "host": _host(world, device),
        "host_memory": _memory(world, torch.device("cpu"), 1 << 25),
        "at_once": device.type != "cpu",
    }
    per_node = min(world.gather_objects(local_world_size()))
    nodes = max(1, world.size // per_node)
    collectives = _collectives(world, device)
    fitted = {name: fit(seconds, world.size, name) for name, seconds in collectives.items()}
    link = fitted["all-reduce"]
    if link:
        link |= {"gather": fitted["all-gather"], "scatter": fitted["reduce-scatter"]}
    return {
        "device": device.type,
        "ranks": world.size,
        "nodes": nodes,
        "memory": _free(world, device),
        "rates": rates,
        "links": {"within": link if nodes == 1 else None, "between": link if nodes > 1 else None},
        "collectives": collectives,
        "disk": _disk(world, folder),
    }


def fit(seconds: dict[int, float], ranks: int, collective: str = "all-reduce") -> dict[str, float] | None:
    """Fits a collective's seconds by its bytes to latency and bandwidth, as launch.plan.cost counts them: the messages
    of a tree there and back, and the bytes of a ring, which goes round twice for an all-reduce and once for the others.
    Least squares of relative errors. None for one rank."""
    if ranks == 1:
        return None
    import numpy as np

    sizes, times = (np.array(values, dtype=float) for values in zip(*seconds.items()))
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) / times[:, None]
    (start, slope), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    messages = 2 * (ranks - 1).bit_length()
    ring = (2 if collective == "all-reduce" else 1) * (ranks - 1) / ranks
    return {"latency": max(float(start), 1e-9) / messages, "bandwidth": ring / max(float(slope), 1e-15)}


def _slowest(world: World, device: torch.device, call: Callable[[], object]) -> float:
    """Median over rounds of the slowest rank's seconds; of a LONG call the seconds of the first one. All ranks make
    the same number of rounds, as they know the same seconds."""

    def once() -> float:
        _wait(device)
        world.barrier()
        began = time.perf_counter()
        call()
        _wait(device)
        return max(world.gather_objects(time.perf_counter() - began))

    first = once()
    if first > LONG:
        return first
    taken = [once() for _ in range(ROUNDS)]
    while sum(taken) < STEADY and len(taken) < MOST_ROUNDS:
        taken.append(once())
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def _products(world: World, device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> float:
    """Floating-point operations per second of products like those of a transformer's feed-forward layer."""
    rows, weights = torch.randn(tokens, width).to(device, dtype), torch.randn(width, 4 * width).to(device, dtype)
    return 2 * tokens * width * 4 * width / _slowest(world, device, lambda: rows @ weights)


def _memory(world: World, device: torch.device, numbers: int) -> float:
    """Bytes per second that an addition reads and writes, into memory that it allocates as training does."""
    one, two = (torch.ones(numbers, device=device) for _ in range(2))
    return 3 * 4 * numbers / _slowest(world, device, lambda: one + two)


def _started(world: World, device: torch.device) -> float:
    """Seconds to start an operation on numbers that are few."""
    few = torch.ones(8, device=device, requires_grad=True)

    def starts() -> None:
        for _ in range(STARTS):
            few + 1.0

    return _slowest(world, device, starts) / STARTS


def _host(world: World, device: torch.device) -> float:
    """Bytes per second from the host's memory to the device."""
    numbers = torch.ones(1 << 24)
    copy = torch.empty_like(numbers, device=device)
    return 4 * numbers.numel() / _slowest(world, device, lambda: copy.copy_(numbers))


def _collectives(world: World, device: torch.device) -> dict[str, dict[int, float]]:
    """Seconds by bytes of an all-reduce, an all-gather and a reduce-scatter."""
    if world.size == 1:
        return {"all-reduce": {}, "all-gather": {}, "reduce-scatter": {}}
    reduced, gathered, scattered = {}, {}, {}
    for numbers in NUMBERS:
        whole = torch.zeros(numbers, device=device)
        each = numbers // world.size
        part, every = torch.zeros(each, device=device), torch.zeros(each * world.size, device=device)
        counts, size = [each] * world.size, 4 * numbers
        reduced[size] = _slowest(world, device, lambda whole=whole: world.sum_flat([whole], 1))
        gathered[size] = _slowest(world, device, lambda part=part, counts=counts: world.gather_rows(part, counts))
        scattered[size] = _slowest(world, device, lambda every=every: world.sum_part(every))
    return {"all-reduce": reduced, "all-gather": gathered, "reduce-scatter": scattered}


def _free(world: World, device: torch.device) -> int:
    """Bytes that a rank may use: of its GPU, or its share of the machine's."""
    if device.type == "cuda":
        mine = torch.cuda.get_device_properties(device).total_memory
    else:
        mine = free_bytes(device)
    return min(world.gather_objects(int(mine)))


def _disk(world: World, folder: Path) -> dict[str, float]:
    """Bytes per second that rank 0 writes (until they are on disk) and reads beside the run file."""

    def both() -> dict[str, float]:
        path = folder / f".embedfleet-speed-{os.getpid()}"
        content = os.urandom(1 << 20)
        try:
            began = time.perf_counter()
            with path.open("wb") as file:
                for _ in range(ON_DISK >> 20):
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            written = time.perf_counter()
            path.read_bytes()
            read = time.perf_counter()
        finally:
            path.unlink(missing_ok=True)
        return {"write": ON_DISK / (written - began), "read": ON_DISK / (read - written)}

    return world.on_first(both)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    try:
        check_packages()
        config = load_config(args.config, args.overrides)
        runtime = start(config, args.config, args.engine, args.processes)
        with process_group(runtime, config.train.timeout_minutes):
            found = measure(runtime, Path(config.output_dir))
            if runtime.is_main:
                write_json(Path(config.output_dir) / OUTPUT, found)
                result(_line(found))
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return fail(error)


def _line(found: dict) -> str:
    rates = found["rates"]
    lines = [
        f"{found['ranks']} rank(s) on {found['device']}, all at once; each:",
        f"products  bf16 {rates['half'] / 1e9:.0f} GFLOP/s, fp32 {rates['single'] / 1e9:.0f} GFLOP/s",
        f"memory    {rates['memory'] / 1e9:.1f} GB/s, an operation starts in {rates['started'] * 1e6:.1f} us",
        f"host      {rates['host'] / 1e9:.1f} GB/s to the device, {rates['host_memory'] / 1e9:.1f} GB/s of its memory",
    ]
    for name, link in found["links"].items():
        if link:
            where = f"{name} the nodes" if name == "between" else "within the node"
            lines.append(f"link      {where}: {link['bandwidth'] / 1e9:.2f} GB/s, {link['latency'] * 1e6:.0f} us")
    disk = found["disk"]
    lines.append(
        f"disk      writes {disk['write'] / 1e9:.2f} GB/s, reads {disk['read'] / 1e9:.2f} GB/s (from its cache)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
