"""The process of a small run and the curve's own: neither is left alone with the folder."""

import json
import subprocess
import sys

import psutil
import pytest

from tests.launching import ROOT
from trainer.curves.child import run_child, wait_for_orphan

PARENT = """
import sys
from pathlib import Path
from trainer.curves.child import run_child
run_child([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
"""
# says that it has begun, and which signal it got; the handler is there before the word
CHILD = """
import os, signal
def stop(number, _):
    print("got", signal.Signals(number).name, flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the death of the parent is Linux's")
def test_a_killed_curve_takes_its_run_along(tmp_path):
    argv = [sys.executable, "-c", PARENT, CHILD, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        assert parent.stdout.read() == "got SIGTERM\n"  # up to its end: the child has ended as well


def test_the_exit_code_is_that_of_the_run(tmp_path):
    assert run_child([sys.executable, "-c", "raise SystemExit(3)"], tmp_path) == 3
    assert not (tmp_path / "running.json").exists()


def test_a_run_that_outlived_its_call_is_waited_for(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        facts = {"process": child.pid, "began": psutil.Process(child.pid).create_time()}
        (tmp_path / "running.json").write_text(json.dumps(facts | {"began": 0}))  # another process of that number
        wait_for_orphan(tmp_path)
        assert "waiting" not in capsys.readouterr().err and child.poll() is None
        (tmp_path / "running.json").write_text(json.dumps(facts))
        child.stdin.write(b"\n")
        child.stdin.close()
        wait_for_orphan(tmp_path)
        assert not psutil.pid_exists(child.pid) or child.wait() == 0
    assert not (tmp_path / "running.json").exists()
