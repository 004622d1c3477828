"""Restarts a run after a failure, as long as it makes progress. Never imports torch."""

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from data_prep.common.console import say
from launch.command import Command
from trainer.distributed import last_words
from trainer.distributed.stop import EXIT_CODE, SIGNALS, marker_written
from trainer.run_dir.layout import measured_file, newest, read_state

IN_VAIN = 2  # restarts in a row without progress: the cause will not pass
PAUSE = 10.0  # seconds before a restart on several nodes: the other nodes' launchers must have ended
LINGER = 30.0  # seconds that a launcher may outlive its ranks; without the other nodes it would wait 15 minutes
LOOK = 2.0  # seconds between two looks at the ranks

MARK = "EMBEDFLEET_ATTEMPT"  # environment variable of a launcher and its descendants


def supervise(first: Command, again: Callable[[], Command], run_dir: Path, restarts: int, pause: float = 0.0) -> int:
    """Runs `first`, and after a failure again(), from the newest whole checkpoint; returns the exit code.

    again: returns the command that resumes. restarts: the most, each after `pause` seconds. Signals are passed to the
    ranks, which write a checkpoint. A run that was stopped, by a signal to us or to its ranks, is not restarted.
    """
    signals: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number: int, _) -> None:
        signals.append(number)
        if child and not (number == signal.SIGINT and _in_foreground()):  # Ctrl-C reaches the whole terminal by itself
            for rank in _ranks(child):
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    earlier = marker_written(run_dir)  # by an earlier run; this run removes the file only after loading
    folder = tempfile.TemporaryDirectory(prefix="embedfleet-run-", ignore_cleanup_errors=True)
    words = Path(folder.name, "errors")
    try:
        command, vain, reached = first, 0, _progress(run_dir)
        for attempt in range(restarts + 1):
            mark = uuid.uuid4().hex
            words.unlink(missing_ok=True)
            marks = {MARK: mark, last_words.VARIABLE: str(words)}
            child = subprocess.Popen(command.argv, env=os.environ | command.environ | marks)
            code = _end_of(child)
            _end_orphans(mark)
            if code == 0:
                return 0
            if signals or marker_written(run_dir) not in (None, earlier):
                _say_stopped(_step(run_dir))
                return 130 if signal.SIGINT in signals else EXIT_CODE
            step, measured = now = _progress(run_dir)
            vain, reached = (0 if now > reached else vain + 1), now
            if attempt == restarts:
                newest_step = f"the newest checkpoint is of step {step}"
                say(f"failed with exit code {code} after {restarts} restart(s); {newest_step}")
                _repeat(words)
                return 1
            if vain == IN_VAIN + 1:
                without = f"a checkpoint after step {step}" + (" or another measured share" if measured else "")
                say(f"failed {vain} times without {without}: not started again; see above for why")
                _repeat(words)
                return 1
            _repeat(words)
            say(f"failed with exit code {code}: restart {attempt + 1} of {restarts}, from step {step}")
            time.sleep(pause)
            if signals:
                return 130 if signal.SIGINT in signals else EXIT_CODE
            command = again()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        folder.cleanup()
    raise AssertionError("the last attempt returns")


def _say_stopped(step: int) -> None:
    """Prints where a stopped run continues: the launcher's traceback stands below the rank's own line."""
    if step:
        say(f"the run was stopped; its newest checkpoint is of step {step}: add --resume to go on")
    else:
        say("the run was stopped before its first checkpoint")


def _repeat(words: Path) -> None:
    """Prints the errors of the ranks once more, below the traceback of their launcher."""
    errors = last_words.read(words)
    for text in errors:
        say(f"the run failed: {text}")
    if not errors:  # SIGKILL leaves no time for a word
        say(
            "no rank left an error: if nothing above says why, one was killed from outside, most often by the system "
            "for lack of memory (dmesg -T | grep -i kill): lower train.micro_batch_tokens, or ask for more memory"
        )


def _in_foreground() -> bool:
    """Returns True if the terminal sends Ctrl-C to us, and so to all our children."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _step(run_dir: Path) -> int:
    folder, _ = newest(run_dir)
    return read_state(folder).step if folder else 0


def _progress(run_dir: Path) -> tuple[int, int]:
    """Returns the step of the newest checkpoint, and the bytes of what a blend at the end of the run has measured."""
    measured = measured_file(run_dir / "final")
    return _step(run_dir), measured.stat().st_size if measured.is_file() else 0


def _end_of(child: subprocess.Popen) -> int:
    """Waits for the exit code; kills a launcher that outlives its ranks, waits for other nodes and ignores SIGTERM."""
    had_ranks, since = False, 0.0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=LOOK)
        if _launched(child):
            had_ranks, since = True, time.monotonic()
        elif had_ranks and time.monotonic() - since > LINGER:
            say(f"the launcher did not end in the {LINGER:.0f} seconds after its ranks: killed")
            child.kill()


def _end_orphans(mark: str) -> None:
    """Kills ranks that outlived their launcher: they would go on to train beside the restarted ones."""
    killed = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or ended meanwhile
            if process.environ().get(MARK) == mark:
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=LINGER)


def _ranks(child: subprocess.Popen) -> list[psutil.Process]:
    """Lists the trainers below a launcher, or the only process."""
    with suppress(psutil.Error):  # ended meanwhile
        return _launched(child) or [psutil.Process(child.pid)]
    return []


def _launched(child: subprocess.Popen) -> list[psutil.Process]:
    """Lists the trainers below a launcher."""
    trainers = []
    with suppress(psutil.Error):  # ended meanwhile
        for process in psutil.Process(child.pid).children(recursive=True):
            if "RANK" in process.environ():
                trainers.append(process)
    return trainers
