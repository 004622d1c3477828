"""Starting a run again after a failure, as long as it gets further. Never imports torch."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

from data_prep.progress import say
from launch.command import Command
from trainer.interrupts import EXIT_CODE, SIGNALS, read_marker
from trainer.state import newest, read_state

IN_VAIN = 2  # restarts in a row without a newer checkpoint: the cause is not a passing one


def supervise(first: Command, again: Callable[[], Command], run_dir: Path, restarts: int) -> int:
    """Runs `first`, and after a failure again() from the newest whole checkpoint; returns the exit code.

    again: the command that resumes. restarts: at most so many. A signal goes on to the ranks, which write a checkpoint;
    a run that was asked to stop, by us or past us, is not started again.
    """
    asked: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number: int, _) -> None:
        asked.append(number)
        if child and number != signal.SIGINT:  # Ctrl-C reaches the whole terminal by itself
            for rank in _ranks(child):
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        command, vain, reached = first, 0, _step(run_dir)
        for attempt in range(restarts + 1):
            child = subprocess.Popen(command.argv, env=os.environ | command.environ)
            code = child.wait()
            if code == 0:
                return 0
            if asked or read_marker(run_dir):
                return 130 if signal.SIGINT in asked else EXIT_CODE
            step = _step(run_dir)
            vain, reached = (0 if step > reached else vain + 1), step
            if attempt == restarts:
                say(
                    f"failed with exit code {code} after {restarts} restart(s); the newest checkpoint is of step {step}"
                )
                return 1
            if vain == IN_VAIN + 1:
                say(f"failed {vain} times without a checkpoint after step {step}: not started again; see above for why")
                return 1
            say(f"failed with exit code {code}: restart {attempt + 1} of {restarts}, from step {step}")
            command = again()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise AssertionError("the last attempt returns")


def _step(run_dir: Path) -> int:
    """Steps that are safe on disk."""
    folder, _ = newest(run_dir)
    return read_state(folder).step if folder else 0


def _ranks(child: subprocess.Popen) -> list[psutil.Process]:
    """The trainers below a launcher, or the one process that there is."""
    found = []
    try:
        parent = psutil.Process(child.pid)
        for process in parent.children(recursive=True):
            if "RANK" in process.environ():
                found.append(process)
        return found or [parent]
    except psutil.Error:  # gone meanwhile
        return found
