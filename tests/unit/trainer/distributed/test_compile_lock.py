"""Compiling on first use: a folder per machine, and no waiting for a compiler that was killed."""

import shutil
import signal
import subprocess
import sys

import pytest

from data_prep.common.errors import BadInput
from tests.launching import ROOT
from trainer.distributed import compile_lock as compilation
from trainer.distributed.deepspeed_json import check_deepspeed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed compiles for the CPU on Linux only")

HOLD = """
from trainer.distributed.compile_lock import compiling_alone
with compiling_alone() as folder:
    (folder / "operator").mkdir()
    (folder / "operator" / "lock").touch()
    print("held", flush=True)
    input()
"""


def test_a_lock_that_a_killed_compiler_left_is_taken_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    left = compilation.operator_folder() / "operator" / "lock"
    assert left.exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with compilation.compiling_alone() as folder:
        assert folder == left.parent.parent
        assert not left.exists()
    assert f"{left}: removed" in capsys.readouterr().err


def test_a_lock_of_a_living_compiler_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    enter = "from trainer.distributed.compile_lock import compiling_alone\nprint('at the door', flush=True)\n"
    enter += "with compiling_alone(): print('in', flush=True)"
    second = subprocess.Popen([sys.executable, "-c", enter], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline() == "at the door\n"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=1)
    holder.communicate("go\n")
    assert second.communicate(timeout=60)[0] == "in\n"


def test_the_folder_is_the_machines_own_and_kept_by_children(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("platform.node", lambda: "node7")
    first = compilation.operator_folder()
    assert first.parent == tmp_path and "node7" in first.name
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(first))
    assert compilation.operator_folder() == first


def test_ninja_beside_the_interpreter_is_found_without_an_activated_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/sh")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(BadInput, match="pip install ninja"):
        check_deepspeed("cpu")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "ninja").chmod(0o755)
    check_deepspeed("cpu")
    with compilation.compiling_alone():
        assert shutil.which("ninja") == str(tmp_path / "bin" / "ninja")
