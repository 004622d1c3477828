"""The process of a small run: it ends with the curve's own process, or the next call waits for it.

- A curve that is killed takes its run along: on Linux the kernel sends the run SIGTERM, so it writes a checkpoint.
- Elsewhere the run goes on. FOLDER/running.json names it, and the same command waits for its end.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from data_prep.common.console import say
from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_object
from trainer.distributed.stop import SIGNALS

LOOK = 1.0  # seconds between two looks at a process
RUNNING = "running.json"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run_child(command: list[str], folder: Path) -> int:
    """Runs a command and returns its exit code. Signals are passed on: a run writes a checkpoint before it ends.

    folder: of the file that tells a later call, where this process is killed, that the command is still at work."""
    stopped: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number: int, _) -> None:
        stopped.append(number)
        if child:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        child = subprocess.Popen(command, preexec_fn=_bound_to_parent())
        for number in stopped:  # before there was a child
            child.send_signal(number)
        write_json(folder / RUNNING, {"process": child.pid, "began": psutil.Process(child.pid).create_time()})
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (folder / RUNNING).unlink(missing_ok=True)
    return 128 + stopped[0] if stopped else code


def _bound_to_parent() -> Callable[[], None] | None:
    """Returns what a child calls before its program starts, so that it gets SIGTERM when this process dies. None: the
    system has no such thing. The program keeps it where it replaces itself by another one."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os._exit(1)

    return bind


def wait_for_orphan(folder: Path) -> None:
    """Waits for the run of an earlier call that was killed while the run went on: two would write into one folder."""
    facts = read_object(folder / RUNNING)
    with suppress(KeyError, psutil.NoSuchProcess):
        orphan = psutil.Process(facts["process"])
        if orphan.create_time() == facts["began"] and orphan.pid != os.getpid():
            say(f"process {orphan.pid} of an earlier call still trains: waiting for it")
            while orphan.status() != psutil.STATUS_ZOMBIE:  # dead, but nobody asked for its exit code
                with suppress(psutil.TimeoutExpired):
                    orphan.wait(timeout=LOOK)
                    break
    (folder / RUNNING).unlink(missing_ok=True)
