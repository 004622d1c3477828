"""Rates of a rank's device and its links: from a table of GPUs, from flags, or measured (`doctor --measure`).

The table holds what the makers state, without sparsity. No card reaches it: REACHED says how much is counted on.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput, nearest
from launch.plan.memory import read_bytes

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    memory: float  # GB
    half: float  # TFLOP/s of dense bf16 or fp16 products, summed in fp32
    single: float  # TFLOP/s in fp32, without TF32
    bandwidth: float  # GB/s of its memory
    link: float  # GB/s that a card sends to the others of a node: NVLink, Infinity Fabric or PCIe, one way
    host: float  # GB/s to the host's memory, one way
    source: str


_A100 = "NVIDIA A100 datasheet, 2021"
_H100 = "NVIDIA H100 datasheet, SXM"
_AMPERE = "NVIDIA GA102 architecture whitepaper, 2021, table 9"
_APPLE = "Apple's specifications; operations from cores x 128 lanes x 2 x clock"
GPUS = {
    "B200": Gpu(180, 2250, 75, 7700, 900, 63, "NVIDIA HGX B200 datasheet, an eighth of the board"),
    "H200": Gpu(141, 989, 67, 4800, 450, 63, "NVIDIA H200 datasheet, SXM"),
    "H100": Gpu(80, 989, 67, 3350, 450, 63, _H100),
    "A100-80": Gpu(80, 312, 19.5, 2039, 300, 31, f"{_A100}, SXM"),
    "A100-40": Gpu(40, 312, 19.5, 1555, 300, 31, f"{_A100}, SXM"),
    "L40S": Gpu(48, 362, 91.6, 864, 31, 31, "NVIDIA L40S datasheet"),
    "L4": Gpu(24, 121, 30.3, 300, 31, 31, "NVIDIA L4 datasheet"),
    "A10": Gpu(24, 125, 31.2, 600, 31, 31, "NVIDIA A10 datasheet"),
    "RTX3090": Gpu(24, 71, 35.6, 936, 31, 31, f"{_AMPERE}; PCIe, though two of them may have an NVLink bridge"),
    "RTX4090": Gpu(24, 165.2, 82.6, 1008, 31, 31, "NVIDIA Ada architecture whitepaper, 2023, appendix A"),
    "RTX5090": Gpu(32, 209.5, 104.8, 1792, 63, 63, "NVIDIA RTX Blackwell architecture whitepaper, 2025, appendix A"),
    "MI300X": Gpu(192, 1307.4, 163.4, 5300, 448, 63, "AMD Instinct MI300X datasheet, 2023"),
    "M1": Gpu(16, 2.6, 2.6, 68, 68, 68, _APPLE),
    "M2": Gpu(24, 3.6, 3.6, 100, 100, 100, _APPLE),
    "M3-MAX": Gpu(64, 14.3, 14.3, 400, 400, 400, _APPLE),
    "M4": Gpu(32, 3.8, 3.8, 120, 120, 120, _APPLE),
    "M4-MAX": Gpu(64, 17.2, 17.2, 546, 546, 546, _APPLE),
}
REACHED = {"products": 0.6, "memory": 0.8, "link": 0.7}  # shares of what the table states; --mfu overrides the first
STARTED = {"cuda": 8e-6, "mps": 2e-5, "cpu": 8e-6}  # seconds until an operation of PyTorch is under way
HOST_MEMORY = 200e9  # bytes per second of a node's memory: eight channels of DDR4-3200 state 204.8
WITHIN_LATENCY, BETWEEN_LATENCY, BETWEEN = 5e-6, 20e-6, 25e9  # seconds of a message; bytes per second of a node
CORE = 50e9  # floating-point operations per second of a CPU core with AVX-512 or AVX2, in fp32
CPU_MEMORY, LOOPBACK = 10e9, 1e9  # bytes per second: of a machine's memory, shared by its ranks; between its processes


@dataclass(frozen=True)
class Rates:
    """The rates that one rank's device reaches."""

    half: float  # floating-point operations per second of matrix products, in bf16 or fp16
    single: float  # … in fp32
    memory: float  # bytes per second that its memory moves
    started: float  # seconds until an operation is under way
    host: float  # bytes per second between device and host
    host_memory: float  # bytes per second of the host's memory, this rank's share
    at_once: bool = True  # operations are started while earlier ones run, as on a GPU

    def products(self, precision: str) -> float:
        return self.single if precision in ("fp32", "tf32") else self.half  # a rate of TF32 is not in the table


@dataclass(frozen=True)
class Link:
    """A connection: bytes per second one way, seconds of one message, as an all-reduce has them."""

    bandwidth: float
    latency: float
    gather: "Link | None" = None  # an all-gather's own, where it was measured
    scatter: "Link | None" = None  # a reduce-scatter's own


@dataclass(frozen=True)
class Hardware:
    """A rank's device and links, and where their figures come from."""

    rates: Rates
    within: Link  # between the ranks of a node
    between: Link  # between nodes: all that a node sends
    notes: tuple[str, ...] = ()
    memory: int | None = None  # bytes of a device, where a GPU was named


def gpu_named(name: str) -> Gpu:
    """Returns a card of the table. Raises BadInput."""
    key = name.upper().replace(" ", "").replace("_", "-")
    if key not in GPUS:
        raise BadInput(f"--gpu: {name} is none of {', '.join(GPUS)}.{nearest(key, GPUS)}")
    return GPUS[key]


def of_gpu(gpu: Gpu, device: str, per_node: int, mfu: float | None = None) -> Hardware:
    """Returns what a card of the table reaches. mfu: share of the stated rate that matrix products reach."""
    share, link = mfu or REACHED["products"], REACHED["link"]
    rates = Rates(
        share * gpu.half * TERA, share * gpu.single * TERA, REACHED["memory"] * gpu.bandwidth * GIGA, STARTED[device],
        link * gpu.host * GIGA, HOST_MEMORY / per_node,
    )  # fmt: skip
    within = Link(link * gpu.link * GIGA, WITHIN_LATENCY)
    return Hardware(rates, within, Link(BETWEEN, BETWEEN_LATENCY), (), int(gpu.memory * GIGA))


def of_cpu(cores: int, per_node: int) -> Hardware:
    """Returns what the ranks of a CPU may reach, where nothing was measured."""
    rate = CORE * max(1, cores // per_node)
    rates = Rates(rate, rate, CPU_MEMORY / per_node, STARTED["cpu"], CPU_MEMORY, CPU_MEMORY / per_node, at_once=False)
    note = "seconds: assumed for this CPU; measure it (python -m launch doctor --measure), then --machine"
    return Hardware(rates, Link(LOOPBACK, 1e-4), Link(BETWEEN, BETWEEN_LATENCY), (note,))


def assumed(memory: int) -> tuple[str, Gpu]:
    """Returns the slowest card of the table that has this much memory (GB or GiB), for a GPU that nobody named; the
    largest card if none has."""
    cards = {name: gpu for name, gpu in GPUS.items() if gpu.source != _APPLE}
    large = {name: gpu for name, gpu in cards.items() if gpu.memory * GIGA >= 0.92 * memory}
    most = max(gpu.memory for gpu in cards.values())
    large = large or {name: gpu for name, gpu in cards.items() if gpu.memory == most}
    least = min(gpu.memory for gpu in large.values())
    name = min((name for name in large if large[name].memory == least), key=lambda name: large[name].half)
    return name, large[name]


def of_machine(path: str, device: str) -> Hardware:
    """Reads what `doctor --measure` wrote. Raises BadInput."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        links = {name: _measured(**link) for name, link in values["links"].items() if link}
        note = f"seconds: measured on {values['ranks']} rank(s) of {values['nodes']} node(s), {path}"
        within = links.get("within") or links.get("between") or Link(LOOPBACK, WITHIN_LATENCY)
        found = Hardware(Rates(**values["rates"]), within, links.get("between", within), (note,), values["memory"])
        measured = values["device"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"--machine: {path} is not what `doctor --measure --output` writes ({reason})") from None
    if measured != device:
        raise BadInput(f"--machine: {path} was measured on {measured}, and this run is for {device}")
    return found


def _measured(gather: dict | None = None, scatter: dict | None = None, **link: float) -> Link:
    return Link(**link, gather=gather and Link(**gather), scatter=scatter and Link(**scatter))


def link_of(text: str | None, latency: float | None, flag: str, given: Link) -> Link:
    """Returns a link with what the flags state, for every collective. text: bytes per second, as 25GB."""
    if not text and latency is None:
        return given
    bandwidth = read_bytes(text, flag) if text else given.bandwidth
    return Link(bandwidth, latency or given.latency)
