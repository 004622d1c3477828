"""Stopping by a signal: a preempted or cancelled run finishes its step, writes a checkpoint and a marker."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import KnownError
from data_prep.common.files import write_json
from trainer.distributed.launcher_claims import rank

MARKER = "requeue.json"  # in the run directory: this run was stopped from outside and wants to go on
EXIT_CODE = 75  # EX_TEMPFAIL; launchers flatten it, so supervisors read the marker
AGAIN_SECONDS = 2.0  # launchers send a Ctrl-C on: only a later one means "at once"
SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Stopped(KnownError):
    """The run was stopped by a signal, with a checkpoint. Raised on every rank, after the same step."""

    on_every_rank = True

    def __init__(self, signal_number: int, step: int, checkpoint: Path):
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; {checkpoint} is whole: add --resume to go on")

    @property
    def code(self) -> int:
        """Exit code: 130 for Ctrl-C, as shells expect, else EXIT_CODE."""
        return 130 if self.signal_number == signal.SIGINT else EXIT_CODE


class StopRequest:
    """Signal that this rank has received, 0 for none. Ranks agree on it with every step, see step_row.Wishes."""

    def __init__(self):
        self.signal_number = 0
        self._since = 0.0

    def receive(self, number: int, _) -> None:
        """Signal handler: notes the first signal; a second Ctrl-C ends the run at once."""
        if self.signal_number and number == signal.SIGINT and time.monotonic() - self._since > AGAIN_SECONDS:
            raise KeyboardInterrupt
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
            if rank() == 0:
                say(f"{signal.Signals(number).name}: finishing this step, then a checkpoint (Ctrl-C again: at once)")


def listen_early() -> None:
    """Notes SIGUSR1 for listening(): a scheduler may send it while a run still loads its libraries. Not SIGTERM:
    launchers send it to ranks when another rank has failed, and those would wait for that one."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, StopRequest().receive)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turns signals into a StopRequest while the block runs (in the main thread: Python has signals nowhere else)."""
    early = getattr(signal.getsignal(signal.SIGUSR1), "__self__", None) if hasattr(signal, "SIGUSR1") else None
    request = early if isinstance(early, StopRequest) else StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_marker(run_dir: Path, stopped: Stopped, step: int) -> None:
    """Writes the marker by which a supervisor starts this run again with --resume. Rank 0."""
    write_json(run_dir / MARKER, {"signal": signal.Signals(stopped.signal_number).name, "step": step})


def remove_marker(run_dir: Path) -> None:
    (run_dir / MARKER).unlink(missing_ok=True)


def marker_written(run_dir: Path) -> int | None:
    """Returns the marker's time in nanoseconds, None where the run was not stopped from outside."""
    try:
        return (run_dir / MARKER).stat().st_mtime_ns
    except FileNotFoundError:
        return None
