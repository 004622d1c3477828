"""Watches the other ranks where a collective cannot fail by itself: under NCCL.

- There the main thread waits inside CUDA. A rank that is gone raises no error, NCCL's watchdog aborts the process
  without saying which rank was behind, and Python's signal handlers never run.
- A thread of each rank reports to the store that the group met at and reads the others' reports. It ends the process
  with a sentence once another rank has failed, is gone, or stays behind for the run's patience.
- It counts its own looks at the store and no clocks, which differ between machines and jump when a machine sleeps.
"""

import json
import os
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from trainer.distributed import last_words
from trainer.distributed.collectives import OUT_OF_REACH, STORE_SECONDS, World

LOOK_SECONDS = 5.0
GRACE = 4  # looks in which a rank may still end by itself; launchers kill it after 30 seconds
GONE = 12  # looks without a sign of life, of a rank or of the store


class Report(NamedTuple):
    """A rank's word about itself."""

    looks: int  # a sign of life
    calls: int  # collectives begun
    step: int
    failed: str | None = None  # its error


class Unmoved:
    """Counts for how many looks a value has stayed the same."""

    def __init__(self):
        self.value, self.looks = None, 0

    def see(self, value) -> int:
        self.looks = self.looks + 1 if value == self.value else 0
        self.value = value
        return self.looks


class Judge:
    """Decides from the reports of all ranks whether this rank can still go on."""

    def __init__(self, rank: int, size: int, patience: int):
        """patience: looks in which this rank may make no progress while another is behind."""
        self.rank, self.patience = rank, patience
        self.others = {other: Unmoved() for other in range(size) if other != rank}
        self.own = Unmoved()

    def verdict(self, calls: int, reports: dict[int, Report]) -> str | None:
        """Returns why this rank ends; None: it goes on. calls: its own. reports: of ranks that have sent any."""
        waited = self.own.see(calls)
        silent = {other: seen.see(reports.get(other)) for other, seen in self.others.items()}
        if waited < GRACE:
            return None
        for other, report in sorted(reports.items()):
            if other != self.rank and report.failed:
                return f"rank {other} has failed: {report.failed}"
        gone = [other for other, looks in silent.items() if looks >= GONE]
        if gone:
            named = ", ".join(_where(other, reports.get(other)) for other in gone)
            return f"no sign of life for {GONE * LOOK_SECONDS:.0f} s from {named}"
        behind = [other for other in silent if other in reports and reports[other].calls < calls]
        if waited >= self.patience and behind:
            return f"waited in vain for {', '.join(_where(other, reports[other]) for other in behind)}"
        return None


def _where(rank: int, report: Report | None) -> str:
    return f"rank {rank} (after step {report.step}, collective {report.calls})" if report else f"rank {rank}"


class Watch:
    """The thread. It stops with stop(), or ends the process."""

    def __init__(self, world: World, patience_seconds: float):
        self.world, self.looks = world, 0
        self.judge = Judge(world.rank, world.size, max(GRACE, int(patience_seconds / LOOK_SECONDS)))
        self.unreached = 0  # looks in a row
        self._over = threading.Event()
        # A connection of its own: the main thread may wait in the group's.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=STORE_SECONDS)
        tcp = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        self.store = dist.PrefixStore("embedfleet/watch", tcp)
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def failed(self, error: BaseException) -> None:
        """Tells the other ranks why this one ends."""
        self._over.set()
        with suppress(RuntimeError):  # the store is out of reach: the error itself must still be told here
            self._send(f"{type(error).__name__}: {error}".splitlines()[0])

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._send()
                reports = self._read()
            except RuntimeError:  # the store's machine is gone, or the link to it
                self.unreached += 1
                text = OUT_OF_REACH if self.unreached >= GONE else None
            else:
                self.unreached, text = 0, self.judge.verdict(self.world.calls, reports)
            if text and not self._over.is_set():
                self._leave(text)

    def _send(self, failed: str | None = None) -> None:
        self.looks += 1
        report = Report(self.looks, self.world.calls, self.world.step, failed)
        thread = threading.Thread(target=self._set, args=(json.dumps(report),), daemon=True)
        thread.start()  # over a cut link an answer may take TCP's 15 minutes
        thread.join(STORE_SECONDS)
        if thread.is_alive():
            raise RuntimeError("the store does not answer")

    def _set(self, text: str) -> None:
        with suppress(RuntimeError):  # _read() meets it too
            self.store.set(str(self.world.rank), text)

    def _read(self) -> dict[int, Report]:
        sent = [rank for rank in range(self.world.size) if self.store.check([str(rank)])]
        return {rank: Report(*json.loads(self.store.get(str(rank)))) for rank in sent}

    def _leave(self, text: str) -> None:
        world = self.world
        text = (
            f"rank {world.rank}: {text}. This rank was in its collective {world.calls} ({world.doing}); {world.again}"
        )
        with suppress(RuntimeError):
            self._send("left because of another rank")
        print(text, file=sys.stderr, flush=True)
        last_words.leave(text)
        os._exit(1)
