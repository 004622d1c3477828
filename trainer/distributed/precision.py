"""Devices that compute bf16 or fp16 slower than fp32, because they have no hardware for it. Never imports torch.

Measured with one core, forward and backward pass of two linear layers, against fp32 on the same core: bf16 takes 13
times as long with AVX2, 4 times with AVX-512, a quarter with AMX. fp16 takes 30 times as long without AVX512_FP16.
"""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {  # precision -> its instruction sets by processor, as Linux lists them
    "bf16": {"x86_64": ("amx_bf16", "avx512_bf16"), "aarch64": ("bf16",)},
    "fp16": {"x86_64": ("amx_fp16", "avx512_fp16"), "aarch64": ("asimdhp",)},
}
CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0)}  # compute capability of the first CUDA devices with units for it


def slow_precision(precision: str, device: str, capability: tuple[int, int] | None = None) -> list[str]:
    """Returns a line with the mend if fp32 is faster than `precision` on this device.

    device: cpu, mps or cuda. capability: compute capability of a CUDA device; None: unknown.
    """
    if precision not in INSTRUCTIONS:
        return []
    if device == "cpu":
        lacking = _lacks_instructions(precision)
        return [f"train.precision: {precision}, but {lacking}: {_SLOWER}; {_FP32}"] if lacking else []
    if device == "mps":
        text = "but Apple GPUs before the M3 have no units for it: there steps take longer than in fp32"
        return [f"train.precision: {precision}, {text}; {_FP32}"] if precision == "bf16" else []
    if capability is None or capability >= CAPABILITY[precision]:
        return []
    mend = "set train.precision=fp16" if capability >= CAPABILITY["fp16"] else _FP32
    have, first = (".".join(map(str, one)) for one in (capability, CAPABILITY[precision]))
    text = f"but this GPU (compute capability {have}) has no units for it, as those from {first} up have"
    return [f"train.precision: {precision}, {text}: steps take longer than in fp32; {mend}"]


_SLOWER = "every step takes many times as long as in fp32"
_FP32 = "set train.precision=fp32"


def _lacks_instructions(precision: str) -> str:
    """Returns why matrix products of the CPU are emulated; an empty string if they are not, or if nobody knows."""
    if platform.system() == "Darwin":
        return f"torch has no kernels for it on a Mac's CPU ({precision})"
    sets = INSTRUCTIONS[precision].get(platform.machine(), ())
    features = cpu_features()
    if not sets or not features or features & {*sets}:
        return ""
    return f"this CPU has no instructions for it ({' or '.join(one.upper() for one in sets)})"


def cpu_features() -> frozenset[str]:
    """Returns the CPU's features by their names in Linux; empty where they are not listed."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(listed, "").split())
