"""Two processes on one output: the second one ends, and the first one does not notice."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common import sole_writer
from data_prep.common.errors import Failed
from data_prep.common.files import unfinished_name, whole_file
from tests.launching import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep.common.files import whole_file

with whole_file(Path(sys.argv[1])) as file:
    file.write("of a killed process" * 1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_writer_of_a_file_ends_and_the_first_is_undisturbed(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    with whole_file(path) as file:
        file.write("first\n")
        file.flush()
        said = "rows.jsonl: another process writes there; wait for its end, or name another output"
        with pytest.raises(Failed, match=said), whole_file(path):
            raise AssertionError("it must not begin")
        file.write("second\n")
    assert path.read_text() == "first\nsecond\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    process = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL and unfinished_name(path).stat().st_size
    with whole_file(path) as file:
        file.write("whole\n")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", [os.replace, lambda part, path: part.unlink()])
def test_a_file_whose_writer_ends_before_the_lock_is_not_cut(tmp_path, monkeypatch, end):
    """The first one ends between the opening and the lock of the second one."""
    path, real, locked = tmp_path / "rows.jsonl", fcntl.flock, []
    part = unfinished_name(path)
    part.write_text("of the first\n")

    def flock(handle: int, how: int) -> None:
        if not locked:
            end(part, tmp_path / "kept.jsonl")
        locked.append(os.fstat(handle).st_ino)
        real(handle, how)

    monkeypatch.setattr(sole_writer.fcntl, "flock", flock)
    with whole_file(path) as file:
        assert len(locked) == 2 and part.stat().st_ino == locked[1]
        file.write("of the second\n")
    assert path.read_text() == "of the second\n"
    if end is os.replace:
        assert Path(tmp_path, "kept.jsonl").read_text() == "of the first\n"


def test_the_end_of_a_writer_leaves_the_file_of_the_next_one(tmp_path):
    part = tmp_path / "part"
    with sole_writer.sole_writer(part, tmp_path / "rows.jsonl"):
        part.rename(tmp_path / "rows.jsonl")
        part.write_text("of the next one")
    assert part.read_text() == "of the next one"


def test_without_locks_the_work_goes_on_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(sole_writer.fcntl, "flock", flock)
    sole_writer._say_without_locks.cache_clear()
    for name in ("a.jsonl", "b.jsonl"):
        with whole_file(tmp_path / name) as file:
            file.write("whole\n")
        assert Path(tmp_path, name).read_text() == "whole\n"
    assert capsys.readouterr().err.count("this file system has no locks (Function not implemented)") == 1
