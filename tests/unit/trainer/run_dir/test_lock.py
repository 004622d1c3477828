"""The lock of a run directory: a second trainer is refused, a dead one holds nothing."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from data_prep.common.errors import BadInput
from tests.launching import ROOT
from trainer.config.loading import parse_config
from trainer.distributed.collectives import World
from trainer.preflight.output import check_place
from trainer.run_dir.layout import RUN_LOCK
from trainer.run_dir.lock import check_free, holding
from trainer.train.train import train

HOLDER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from trainer.run_dir.lock import holding
with holding(Path(sys.argv[1]), SimpleNamespace(on_first=lambda work: work())):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path/out."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_trainer_is_refused_until_the_first_is_dead(tmp_path, tiny_bert, tiny_shards, holder):
    values = {"output_dir": str(tmp_path / "out"), "model": {"path": str(tiny_bert)}}
    values |= {"data": {"train": str(tiny_shards)}}
    values |= {"train": {"batch_size": 16, "max_steps": 2, "micro_batch_tokens": 300}}
    config = parse_config(values, "test")
    with pytest.raises(BadInput) as caught:
        train(config, "run.yaml", resume=True)
    [problem] = caught.value.problems
    assert problem.startswith(f"output_dir: process {holder.pid} on {socket.gethostname()}, since 20")
    assert problem.endswith(f"stop it (kill {holder.pid} there), then add --resume; or name another folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RUN_LOCK], "nothing was written beside the first"
    holder.kill()  # leaves no time to release anything
    holder.wait()
    final = train(config, "run.yaml", resume=True)
    assert (final / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / RUN_LOCK).read_text())["pid"] == os.getpid()
    check_free(tmp_path / "out")


def test_it_is_refused_where_it_is_taken_too(tmp_path, holder):
    """Another run may begin between the checks and the start."""
    with pytest.raises(BadInput, match=f"process {holder.pid} on "), holding(tmp_path / "out", World()):
        raise AssertionError("both hold it")


def test_a_failed_run_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), holding(tmp_path, World()):
        with pytest.raises(BadInput, match=f"process {os.getpid()} on "):
            check_place(tmp_path, resume=True)
        raise ZeroDivisionError
    check_place(tmp_path, resume=False)  # the lock alone makes no run of a folder


def test_a_holder_that_has_not_written_its_name_is_another_process(tmp_path):
    with holding(tmp_path, World()):
        (tmp_path / RUN_LOCK).write_text("")
        with pytest.raises(BadInput, match="another process trains in .*; wait for its end or stop it, then add"):
            check_free(tmp_path)


def test_those_who_ask_do_not_see_each_other(tmp_path):
    with holding(tmp_path, World()):
        pass
    with open(tmp_path / RUN_LOCK) as asks:
        fcntl.flock(asks, fcntl.LOCK_SH)
        check_free(tmp_path)


def test_without_locks_one_line_says_so(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    check_free(tmp_path)
    with holding(tmp_path, World()), holding(tmp_path, World()):
        check_free(tmp_path)
    line = (
        f"{tmp_path}: this file system has no locks (No locks available), so nothing stops a second run in this folder"
    )
    assert capsys.readouterr().err.splitlines() == [line, line]


def test_the_lock_is_not_inherited_by_programs_that_a_run_starts(tmp_path):
    argv = [sys.executable, "-c", "print('begun', flush=True); input()"]
    with holding(tmp_path, World()):
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
    with child:
        assert child.stdout.readline() == b"begun\n"
        check_free(tmp_path)
        child.stdin.write(b"\n")
        child.stdin.close()
    assert child.returncode == 0
