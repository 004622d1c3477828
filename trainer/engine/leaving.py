"""The end of a rank that fails: one rank speaks for all where all have it, and the launcher ends the others."""

import os
import sys
import time
import traceback
from collections.abc import Callable

from data_prep.common.console import escape_what_stdout_lacks
from data_prep.common.errors import KnownError, guarded, report
from trainer.distributed import last_words
from trainer.distributed.launcher_claims import rank, world_size
from trainer.engine.slurm_tasks import adopt_tasks

SPEAKS = 5.0  # seconds that rank 0 may need longer to say it for all: launchers end every rank once one is gone


def leave(error: BaseException, together: bool = False, again: str = "") -> int:
    """Prints the error, from rank 0 where every rank has it, else from this rank; returns the exit code.

    together: every rank raises the same error here, whatever it is. again: how to go on after Ctrl-C.
    """
    try:
        text, code = report(error)
    except Exception:
        if world_size() == 1:
            raise
        text, code = traceback.format_exc(), 1
    if isinstance(error, KeyboardInterrupt) and again:
        text += f"; {again}"
    if world_size() == 1:
        print(text, file=sys.stderr)
        return code
    everywhere = together or (isinstance(error, KnownError) and error.on_every_rank)
    if rank() == 0 or not everywhere:
        print(text if rank() == 0 else f"rank {rank()}: {text}", file=sys.stderr, flush=True)
        last_words.leave(f"rank {rank()}: {text if isinstance(error, KnownError) else text.strip().splitlines()[-1]}")
    else:
        time.sleep(SPEAKS)
    # Leaving in order would wait for ranks that sit in a collective; the launcher ends them when this one is gone.
    os._exit(code)


def guarded_ranks(work: Callable[[], int | None]) -> int:
    """Runs a command that may have several ranks, and returns its exit code; see errors.guarded. Until they have joined
    a group, every rank does the same and fails the same way."""
    if code := guarded(adopt_tasks):
        return code
    if world_size() == 1:
        return guarded(work)
    escape_what_stdout_lacks()
    try:
        return work() or 0
    except (Exception, KeyboardInterrupt) as error:
        torch = sys.modules.get("torch")
        return leave(error, together=not (torch and torch.distributed.is_initialized()))
