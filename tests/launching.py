"""Starts real processes for tests: the same commands a user types."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER_VARIABLES = (  # beginnings of their names
    "ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PET_", "TORCHELASTIC_", "GROUP_", "ROLE_",
    "SLURM_STEP_", "OMPI_", "PMI_", "DS_ACCELERATOR",
)  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher may have left in it."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith((*LAUNCHER_VARIABLES, "OMP_NUM_THREADS"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | extra


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(
    *argv: str, timeout: int = 240, cwd: Path | None = None, real: bool = False, **extra: str
) -> subprocess.CompletedProcess:
    """python argv…, in a clean launcher environment; output as text, stderr after stdout in .both.

    A command of the product or a launcher is forked from a process that has imported everything (forked.py), and what
    it starts too. real: an interpreter of its own, where its start, its imports or its random hashes are what the test
    is about.
    """
    from tests import forked

    if not real and argv[0] == "-m" and (argv[1].partition(".")[0] in forked.PRODUCT or argv[1] in forked.LAUNCHERS):
        return forked.run(*argv, timeout=timeout, cwd=cwd, **extra)
    done = subprocess.run(
        [sys.executable, *argv], env=environment(**extra), cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
    done.both = done.stdout + done.stderr
    return done


def install(folder: Path, *packages: str) -> None:
    """Installs packages without what they need into a folder for PYTHONPATH; skips the test where they cannot be had.

    They are not compiled: a test imports few of their modules, and compiling transformers takes 13 s.
    """
    import pytest

    flags = ["--quiet", "--no-deps", "--no-compile", "--retries", "0", "--timeout", "20", "--target", str(folder)]
    done = run("-m", "pip", "install", *flags, *packages, timeout=900)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {reason}")


def torchrun(processes: int, *argv: str, timeout: int = 240, **extra: str) -> subprocess.CompletedProcess:
    """The command on ranks that torchrun starts. Where torchrun is not the point: forked.run_ranks."""
    flags = ["--nproc-per-node", str(processes), "--master-port", str(free_port())]
    return run("-m", "torch.distributed.run", *flags, *argv, timeout=timeout, OMP_NUM_THREADS="1", **extra)
