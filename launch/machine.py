"""Looks at this machine: GPUs, cores, a free port. Never imports torch."""

import os
import platform
import re
import shutil
import socket
import subprocess
from itertools import takewhile
from pathlib import Path

from data_prep.common.workers import cores
from launch.command import Machine


def this_machine() -> Machine:
    mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    return Machine(gpus=_gpus(), mps=mps, cores=cores())


VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
NVIDIA_FILES = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*")  # where a container has no nvidia-smi
AMD_NODES = "sys/class/kfd/kfd/topology/nodes/*/properties"  # CPUs are nodes too, without SIMD units


def _gpus() -> int:
    """Counts the devices that ranks may use under torch's name `cuda`, NVIDIA's or AMD's: those that the environment
    makes visible, else those that the driver lists."""
    for name in VISIBLE:
        if name in os.environ:
            return _visible(os.environ[name])
    return _listed_by_nvidia_smi() or gpus_of_drivers(Path("/"))


def _visible(names: str) -> int:
    """Counts as CUDA does: the list ends at the first device that is none."""
    return len(list(takewhile(lambda name: name.strip() not in ("", "-1"), names.split(","))))


def _listed_by_nvidia_smi() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def gpus_of_drivers(root: Path) -> int:
    """Counts GPUs by the files of NVIDIA's and AMD's drivers."""
    nvidia = max(len(list(root.glob(pattern))) for pattern in NVIDIA_FILES)
    return nvidia or sum(_has_simd_units(file) for file in root.glob(AMD_NODES))


def _has_simd_units(properties: Path) -> bool:
    try:
        facts = dict(line.split() for line in properties.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return False
    return int(facts.get("simd_count", "0")) > 0


def capability(machine: Machine) -> tuple[int, int] | None:
    """Returns the least compute capability of the NVIDIA GPUs, None where there is none or nvidia-smi does not tell."""
    if not machine.gpus or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return min((tuple(map(int, found)) for found in re.findall(r"^(\d+)\.(\d+)$", listed, re.M)), default=None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
