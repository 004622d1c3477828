"""Looks at this machine: GPUs, cores, a free port. Never imports torch."""

import os
import platform
import shutil
import socket
import subprocess

from data_prep.common.workers import cores
from launch.command import Machine


def this_machine() -> Machine:
    mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    return Machine(gpus=_gpus(), mps=mps, cores=cores())


def _gpus() -> int:
    """Counts the CUDA devices that ranks may use: those of CUDA_VISIBLE_DEVICES if set, else of nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
