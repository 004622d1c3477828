"""Checks that take all ranks together: `python -m launch doctor --config RUN.yaml` starts this on every node.

Takes the trainer's flags, trains nothing. Rank 0 prints one line per finding on stdout; exit code 1 if one is wrong.
"""

import socket
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from data_prep.common.console import result
from data_prep.common.files import existing_parent
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.config.sections import RunConfig
from trainer.diagnosis.findings import Finding, disk, shown
from trainer.distributed.collectives import World
from trainer.distributed.device import precision_notes
from trainer.engine.agreement import Disagreement, check_agreement, facts_of
from trainer.engine.start import Runtime, process_group, start
from trainer.frontends.command_line import fail, parser
from trainer.preflight.inputs import Inputs

ROUNDS = 9
SMALL, LARGE = 1, 1 << 22  # fp32 numbers: for the latency, and 16 MiB for the bandwidth
SKEW_SECONDS = 1.0
SEEN_SECONDS = 5.0  # a network file system may show a new file late


def diagnose(config: RunConfig, run_file: str, engine: str | None, processes: int | None) -> bool:
    """Prints the findings; returns True if no check failed. Collective. Raises BadInput for an unplanned world."""
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime, config.train.timeout_minutes):
        findings = [_ranks(runtime), *_agree(runtime.world, config), _names(runtime.world), _skew(runtime.world)]
        findings += [_shared(runtime.world, Path(config.output_dir)), *_resources(runtime.world, config)]
        findings += _network(runtime)
        slow = precision_notes(config.train.precision, runtime.device.type)
        findings += [Finding("warn", "precision", line) for line in slow]
        for finding in findings if runtime.is_main else ():
            result(shown(finding))
        return all(finding.level != "FAIL" for finding in findings)


def _ranks(runtime: Runtime) -> Finding:
    """Describes the ranks; start() has compared them with the plan already."""
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    hosts = runtime.world.gather_objects(socket.gethostname())
    nodes = {name: hosts.count(name) for name in dict.fromkeys(hosts)}
    where = ", ".join(f"{count} on {name}" for name, count in nodes.items())
    process = f"{runtime.engine} on {runtime.device.type}, backend {backend}"
    return Finding("ok", "ranks", f"{runtime.world.size} seen as planned ({where}), {process}")


def _agree(world: World, config: RunConfig) -> list[Finding]:
    try:
        check_agreement(world, facts_of(config, Inputs(config).fingerprint))
    except Disagreement as error:
        return [Finding("FAIL", "agreement", problem) for problem in error.problems[:-1]]
    return [Finding("ok", "agreement", "every rank has the same run file, data, model folder, code and versions")]


def _names(world: World) -> Finding:
    """Checks that host names resolve: without GLOO_SOCKET_IFNAME gloo uses the network card of the host's own name."""
    try:
        mine = socket.gethostname(), socket.gethostbyname(socket.gethostname())
    except OSError:
        mine = socket.gethostname(), None
    addresses = sorted(dict(world.gather_objects(mine)).items())
    problems = [f"{name} does not resolve" for name, address in addresses if address is None]
    if len(addresses) > 1:
        inward = [name for name, address in addresses if address and address.startswith("127.")]
        problems += [f"{name} is a loopback address" for name in inward]
    if problems:
        launchers = "`launch run` sets GLOO_SOCKET_IFNAME by itself, other launchers do not"
        mend = f"enter the addresses in /etc/hosts; {launchers}"
        return Finding("warn", "host names", f"on the host itself {', '.join(problems)}", mend)
    return Finding("ok", "host names", ", ".join(f"{name} is {address}" for name, address in addresses))


def _skew(world: World) -> Finding:
    """Compares the clocks, read as the ranks leave a barrier; the median of several rounds."""
    readings = []
    for _ in range(ROUNDS):
        world.barrier()
        readings.append(world.gather_objects(time.time()))
    offsets = [statistics.median(one[rank] - one[0] for one in readings) for rank in range(world.size)]
    worst = max(range(world.size), key=lambda rank: abs(offsets[rank]))
    text = f"rank {worst} is {offsets[worst]:+.3f} s off rank 0" if world.size > 1 else "one rank"
    if abs(offsets[worst]) > SKEW_SECONDS:
        mend = "set the clocks by NTP: the times in logs of several nodes do not compare"
        return Finding("warn", "clocks", text, mend)
    return Finding("ok", "clocks", f"{text}, the most of all")


def _shared(world: World, run_dir: Path) -> Finding:
    """Checks that every rank sees what the others write beside the run folder: all of them read checkpoints."""
    parent = world.from_first(str(existing_parent(run_dir)))
    folder = Path(parent) / f".embedfleet-doctor-{world.from_first(uuid.uuid4().hex)}"
    try:
        folder.mkdir(parents=False, exist_ok=True)
        (folder / str(world.rank)).write_text("here")
        wrote = True
    except OSError:
        wrote = False
    written = world.gather_objects(wrote)
    expected, end = {str(rank) for rank, done in enumerate(written) if done}, time.monotonic() + SEEN_SECONDS
    while not (seen := expected <= _listed(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    saw = world.gather_objects(seen)
    for name in _listed(folder):
        (folder / name).unlink(missing_ok=True)
    world.barrier()
    if folder.is_dir():  # the last rank may see it gone
        with suppress(OSError):
            folder.rmdir()
    if refused := ", ".join(str(rank) for rank, done in enumerate(written) if not done):
        mend = "mount it on every node, writable, or set output_dir to a folder that is"
        return Finding("FAIL", "shared files", f"rank(s) {refused} cannot write into {parent}", mend)
    if blind := ", ".join(str(rank) for rank, done in enumerate(saw) if not done):
        mend = "set output_dir to a folder on a file system that all nodes share"
        return Finding("FAIL", "shared files", f"rank(s) {blind} do not see what others wrote into {parent}", mend)
    return Finding("ok", "shared files", f"every rank sees what every other wrote into {parent}")


def _listed(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError:
        return set()


def _resources(world: World, config: RunConfig) -> list[Finding]:
    least, name = min(world.gather_objects((psutil.virtual_memory().available, socket.gethostname())))
    memory = Finding("ok", "memory", f"{least / 2**30:.1f} GiB free on {name}, the least of all nodes")
    on_disk = world.gather_objects(disk(Path(config.output_dir), config.model.path))
    worst = next((finding for finding in on_disk if finding.level != "ok"), on_disk[0])
    return [memory, worst]


def _network(runtime: Runtime) -> list[Finding]:
    world = runtime.world
    if world.size == 1:
        return []
    counts = [LARGE // world.size] * world.size
    small, large, part = (torch.zeros(size, device=runtime.device) for size in (SMALL, LARGE, counts[0]))
    latency = _seconds(world, lambda: world.sum_flat([small], 1))
    reduced = _seconds(world, lambda: world.sum_flat([large], 1))
    gathered = _seconds(world, lambda: world.gather_rows(part, counts))
    size = large.numel() * large.element_size() / 1e6
    return [
        Finding("ok", "latency", f"{latency * 1e3:.2f} ms for an all-reduce of one number"),
        Finding("ok", "bandwidth", f"all-reduce {size / reduced:.0f} MB/s, all-gather {size / gathered:.0f} MB/s "
                f"(of {size:.0f} MB)"),
    ]  # fmt: skip


def _seconds(world: World, call: Callable[[], object]) -> float:
    """Median over rounds of the slowest rank's time."""
    call()  # the first one opens connections
    seconds = []
    for _ in range(ROUNDS):
        world.barrier()
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(max(world.gather_objects(time.perf_counter() - began)))
    return statistics.median(seconds)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    try:
        check_packages()
        config = load_config(args.config, args.overrides)
        return 0 if diagnose(config, args.config, args.engine, args.processes) else 1
    except (Exception, KeyboardInterrupt) as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
