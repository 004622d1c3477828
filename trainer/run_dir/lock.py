"""Lock of a run directory: one trainer at a time. Never imports torch.

- Rank 0's process holds it while it trains. The kernel releases it with the process, however that ends.
- The lock is on OUT/.run.lock, which stays; its text says who holds it.
- Some file systems have no such locks. There the run goes on, and one line says so.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.sole_writer import locked, unlock
from trainer.run_dir.layout import RUN_LOCK

if TYPE_CHECKING:
    from trainer.distributed.collectives import World


@contextmanager
def holding(run_dir: Path, world: "World") -> Iterator[None]:
    """Holds the lock while the block runs. Raises BadInput on every rank if another process holds it. Collective."""
    handles: list[int] = []
    world.on_first(lambda: handles.append(_take(run_dir)))
    try:
        yield
    finally:
        for handle in handles:
            os.close(handle)


def check_free(run_dir: Path) -> None:
    """Raises BadInput if another process trains in this folder."""
    try:
        handle = os.open(run_dir / RUN_LOCK, os.O_RDWR)
    except OSError:  # no run has begun there, or the folder is another user's, which a check of its own reports
        return
    try:
        if _is_held(handle):
            raise _refusal(run_dir, handle)
    except OSError:  # _take says it
        pass
    finally:
        os.close(handle)


def _take(run_dir: Path) -> int:
    """Returns the open file that holds the lock; not inherited by the programs that this process starts."""
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(run_dir / RUN_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not locked(handle):
            if _is_held(handle):
                raise _refusal(run_dir, handle)
    except OSError as error:
        say(
            f"{run_dir}: this file system has no locks ({error.strerror}), so nothing stops a second run in this folder"
        )
        return handle
    except BaseException:
        os.close(handle)
        raise
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.truncate(handle, 0)
    os.write(handle, f"{json.dumps(holder)}\n".encode())
    return handle


def _is_held(handle: int) -> bool:
    """Returns True if a trainer holds the lock. Those who ask share it meanwhile, so they do not see each other."""
    if not locked(handle, shared=True):
        return True
    unlock(handle)
    return False


def _refusal(run_dir: Path, handle: int) -> BadInput:
    who, stop = "another process", "stop it"
    with suppress(OSError, ValueError, KeyError, TypeError):  # it has not written yet
        holder = json.loads(os.pread(handle, 4096, 0))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
        stop = f"stop it (kill {holder['pid']} there)"
    mend = f"wait for its end or {stop}, then add --resume; or name another folder"
    return BadInput(f"output_dir: {who} trains in {run_dir}; {mend}")
