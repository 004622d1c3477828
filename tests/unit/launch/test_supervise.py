"""The supervisor with commands that train nothing: when it starts again, when it gives up, how it stops its ranks.

With real ranks: tests/end_to_end/test_survival.py (a rank is killed) and tests/soak/supervision.py (asked to stop).
"""

import os
import signal
import sys
import threading
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data_prep.common.errors import Failed
from launch import supervise as module
from launch.command import Command
from launch.supervise import supervise
from tests.launching import ROOT
from trainer.distributed import last_words
from trainer.distributed.stop import EXIT_CODE, MARKER
from trainer.frontends.command_line import fail
from trainer.run_dir.layout import measured_file

STARTED = "open({started!r}, 'a').write('x')"
# As torchrun: two ranks below it; it ends badly once they have ended.
LAUNCHER = """
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-SEc", {rank!r}], env=dict(RANK=str(i))) for i in range(2)]
[rank.wait() for rank in ranks]
sys.exit(1)
"""
RANK = """
import os, signal, sys
def stop(*_):
    open({folder!r} + "/stopped" + os.environ["RANK"], "w")
    open({folder!r} + "/" + {marker!r}, "w")
    sys.exit(75)
signal.signal({number}, stop)
open({folder!r} + "/ready" + os.environ["RANK"], "w")
signal.pause()
"""


def test_a_run_that_gets_no_further_is_given_up(tmp_path, capsys):
    started = tmp_path / "started"
    fails = Command([sys.executable, "-SEc", f"{STARTED.format(started=str(started))}; raise SystemExit(1)"])
    assert supervise(fails, lambda: fails, tmp_path, 9) == 1
    assert started.read_text() == "xxx"
    assert "failed 3 times without a checkpoint after step 0" in capsys.readouterr().err


def test_shares_that_are_measured_at_the_end_of_a_run_are_progress(tmp_path, capsys):
    measured = measured_file(tmp_path / "final")
    adds = f"file = open({str(measured)!r}, 'a'); file.write('x'); file.close()"
    grows = Command([sys.executable, "-SEc", f"{adds}; raise SystemExit(len(open({str(measured)!r}).read()) < 6)"])
    assert supervise(grows, lambda: grows, tmp_path, 9) == 0
    assert "restart 5 of 9" in capsys.readouterr().err
    fails = Command([sys.executable, "-SEc", "raise SystemExit(1)"])
    assert supervise(fails, lambda: fails, tmp_path, 9) == 1
    assert "failed 3 times without a checkpoint after step 0 or another measured share:" in capsys.readouterr().err


def test_a_run_that_ends_well_after_a_restart_is_done(tmp_path, capsys):
    fails, ends = (Command([sys.executable, "-SEc", f"raise SystemExit({code})"]) for code in (3, 0))
    assert supervise(fails, lambda: ends, tmp_path, 9) == 0
    assert capsys.readouterr().err.count("failed with exit code 3: restart 1 of 9, from step 0") == 1


SPEAKS = """
import sys
from trainer.distributed import last_words
for rank in (1, 0, 1):
    last_words.leave(f"rank {rank}: error: rank {rank} lost the others\\n  - a second line")
print("Traceback (most recent call last):", file=sys.stderr)
sys.exit(1)
"""


@pytest.mark.parametrize("restarts", [0, 1, 9])
def test_the_ranks_errors_stand_below_the_traceback_of_their_launcher(tmp_path, capfd, restarts, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    speaks = Command([sys.executable, "-c", SPEAKS])
    assert supervise(speaks, lambda: speaks, tmp_path, restarts) == 1
    last = capfd.readouterr().err.rpartition("Traceback")[2].splitlines()[-4:]
    assert last == [
        "the run failed: rank 1: error: rank 1 lost the others", "  - a second line",
        "the run failed: rank 0: error: rank 0 lost the others", "  - a second line",
    ]  # fmt: skip


def test_a_run_that_failed_without_a_word_has_no_word_of_an_earlier_attempt(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fails = Command([sys.executable, "-SEc", "raise SystemExit(1)"])
    assert supervise(Command([sys.executable, "-c", SPEAKS]), lambda: fails, tmp_path, 1) == 1
    last = capfd.readouterr().err.rpartition("restart 1 of 1")[2]
    assert "the run failed" not in last and "killed from outside" in last.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "left"), [(Failed("lost"), "rank 1: error: lost"), (KeyError("x"), "rank 1: KeyError: 'x'")]
)
def test_a_rank_leaves_its_error_for_launch_run(tmp_path, monkeypatch, capsys, error, left):
    files = {last_words.VARIABLE: str(tmp_path / "errors"), last_words.OF_TORCHRUN: str(tmp_path / "torchrun")}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **files}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", lambda code: None)
    try:
        raise error
    except (Failed, KeyError) as caught:
        fail(caught)
    assert last_words.read(tmp_path / "errors") == [left]
    assert left in str(ProcessFailure(1, 2, 1, str(tmp_path / "torchrun")).message)
    failed = ChildFailedError("trainer", {1: ProcessFailure(1, 2, 1, str(tmp_path / "torchrun"))})
    assert f"traceback : {left}\n====" in str(failed), "the last line before the end of torchrun's traceback"
    assert last_words.read(tmp_path / "none") == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_CODE), (signal.SIGINT, 130)])
def test_a_supervisor_that_is_asked_to_stop_stops_its_ranks_whole(tmp_path, capsys, monkeypatch, number, code):
    monkeypatch.setattr(module, "_in_foreground", lambda: False)
    rank = RANK.format(folder=str(tmp_path), marker=MARKER, number=int(number))
    command = Command([sys.executable, "-SEc", LAUNCHER.format(rank=rank)])

    def ask() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not all((tmp_path / f"ready{i}").exists() for i in range(2)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert supervise(command, lambda: command, tmp_path, 2) == code
    finally:
        asking.join()
    assert all((tmp_path / f"stopped{i}").exists() for i in range(2)), "the signal reached both ranks"
    said = capsys.readouterr().err
    assert "restart" not in said and said.endswith("the run was stopped before its first checkpoint\n")


@pytest.mark.parametrize(("step", "end"), [(0, "before its first checkpoint"), (6, "step 6: add --resume to go on")])
def test_where_a_stopped_run_continues_stands_below_the_launchers_traceback(tmp_path, capfd, monkeypatch, step, end):
    monkeypatch.setattr(module, "_step", lambda _: step)
    stops = f"open({str(tmp_path / MARKER)!r}, 'w'); raise SystemError('torch.distributed: got signal: 2')"
    stopped = Command([sys.executable, "-SEc", stops])
    assert supervise(stopped, lambda: stopped, tmp_path, 3) == EXIT_CODE
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1 and said.splitlines()[-1].endswith(end), "and it is not started again"
