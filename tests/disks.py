"""Small file systems for tests, where this user may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs on a new folder; skips where this user may not mount one."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        yield folder
    finally:
        while folder.is_mount():  # make_read_only mounts it over itself
            subprocess.run(["umount", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    """From here on nothing can be made below it; what is open for writing stays so. umount ends it."""
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        subprocess.run(["mount", *options], check=True)
