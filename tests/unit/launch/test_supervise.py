"""The supervisor with commands that train nothing: when it starts again, when it gives up, how it stops its ranks.

With real ranks: tests/end_to_end/test_survival.py (a rank is killed) and tests/soak/supervision.py (asked to stop).
"""

import os
import signal
import sys
import threading
import time

import pytest

from launch import supervise as module
from launch.command import Command
from launch.supervise import supervise
from trainer.distributed.stop import EXIT_CODE, MARKER

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


def test_a_run_that_ends_well_after_a_restart_is_done(tmp_path, capsys):
    fails, ends = (Command([sys.executable, "-SEc", f"raise SystemExit({code})"]) for code in (3, 0))
    assert supervise(fails, lambda: ends, tmp_path, 9) == 0
    assert capsys.readouterr().err.count("failed with exit code 3: restart 1 of 9, from step 0") == 1


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
    assert "restart" not in capsys.readouterr().err
