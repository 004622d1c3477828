"""A Ray cluster of one node on loopback, for tests and soaks."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.launching import environment, free_port

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token comes into the home folder
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # ray-project/ray#63202: some starts of a client die
}


class Head(NamedTuple):
    """address: of the cluster. client: of its client server. folder: what Ray itself writes."""

    process: psutil.Process
    address: str
    client: str
    folder: Path


@contextmanager
def ray_head(cores: int, **more: str) -> Iterator[Head]:
    """Starts a node with so many cores. more: environment of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="ef-"))  # Ray's sockets need a short path
    port, client = free_port(), free_port()
    argv = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus", cores, "--port", port]
    argv += ["--node-ip-address", "127.0.0.1", "--ray-client-server-port", client, "--include-dashboard", "false"]
    argv += ["--object-store-memory", 80 << 20, "--temp-dir", folder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    head = subprocess.Popen([str(word) for word in argv], env=environment(**QUIET, **more), **pipes)
    try:
        lines = []
        while "Ray runtime started" not in (line := head.stdout.readline()):
            assert line, "".join(lines)
            lines.append(line)
        yield Head(psutil.Process(head.pid), f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", folder)
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def running_tasks(head: Head, function: str = "_run_task") -> list[psutil.Process]:
    """Processes of a node that run a task. function: of the task."""
    return [one for one in head.process.children(recursive=True) if f"ray::{function}" in _command(one)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
