"""One process at a time on the temporary file of an output. The kernel frees the lock when the process ends.

- The lock is on the temporary file itself, so that none stays behind. Opening does not empty it: it may be another
  process's.
- That process may end between the opening and the lock. Then the name is no longer that of the locked file, which may
  be its output by now, and the name is opened anew.
- Some file systems have no such locks. There the work goes on, and one line says so.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import Failed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def sole_writer(part: Path, output: Path, mode: int = 0o666) -> Iterator[None]:
    """A block in which no other process has the temporary file `part` of this output, with or without content.

    The file is created, or taken over from an interrupted run, and removed at the end unless it got another name. mode:
    of a new file, before the umask. Failed: another process has it.
    """
    handle = _locked(part, output, mode)
    try:
        yield
    finally:
        if _is_named(handle, part):  # else the name may be another process's by now
            part.unlink()
        os.close(handle)


def _locked(part: Path, output: Path, mode: int) -> int:
    """Returns the open and locked file; not inherited by the programs that this process starts."""
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT, mode)
        try:
            if not _lock(handle):
                raise Failed(f"{output}: another process writes there; wait for its end, or name another output")
            if _is_named(handle, part):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    """Locks the file, unless another process has done so."""
    try:
        return locked(handle)
    except OSError as error:
        _say_without_locks(error.strerror)
        return True


def locked(handle: int, shared: bool = False) -> bool:
    """Takes a lock on an open file, unless another process has it. Raises OSError where there are no locks."""
    if fcntl is None:
        raise OSError(0, "Python has none here")
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(handle: int) -> None:
    """Gives a lock back that `locked` took."""
    fcntl.flock(handle, fcntl.LOCK_UN)


@lru_cache
def _say_without_locks(reason: str) -> None:
    say(f"this file system has no locks ({reason}), so nothing stops a second process from writing the same output")


def _is_named(handle: int, part: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(part))
    except FileNotFoundError:
        return False
