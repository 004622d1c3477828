"""Many calls to a model at once: bounded concurrency, a stop by Ctrl-C that loses no answer."""

import asyncio
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from data_prep.common.console import say
from data_prep.model_server.client import Client, Stopped

W = TypeVar("W")
_END = object()


class Calls(ABC, Generic[W]):
    """Works on each item of `wanted` once. A subclass asks the model about one and keeps the answer.

    The items are worked on one by one until the server has answered and it is known what it can do, so that a wrong
    server, key or model shows at one call.
    wanted: items, or None to let other tasks run.
    """

    def __init__(self, model: Client, wanted: Iterator[W | None], concurrency: int):
        self.model, self.wanted, self.concurrency = model, wanted, concurrency
        self._under_way = 0  # items
        self._failure: BaseException | None = None
        self._interrupts = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[asyncio.Task] = []

    @abstractmethod
    async def work(self, item: W) -> None:
        """Asks about one item, and returns once its answer is on disk."""

    def run(self) -> None:
        """Returns when every item was worked on.

        KeyboardInterrupt: after Ctrl-C, once the pending calls ended and their answers are kept; a second Ctrl-C
        cancels them. BadInput, Failed, OSError: no further call would help; answers are kept.
        """
        if _a_loop_runs():
            self._run_beside()
        else:
            before = signal.getsignal(signal.SIGINT)
            asyncio.run(self._run())
            if _in_main_thread():
                signal.signal(signal.SIGINT, before)
        if self._failure is not None:
            raise self._failure
        if self._interrupts:
            raise KeyboardInterrupt

    def _run_beside(self) -> None:
        """Runs in a thread of its own, since a notebook's loop runs in this one."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(asyncio.run, self._run())
            try:
                done.result()
            except KeyboardInterrupt:
                self._loop.call_soon_threadsafe(self._interrupted)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if _in_main_thread():
            self._loop.add_signal_handler(signal.SIGINT, self._interrupted)
        try:
            for work, count in ((self._first, 1), (self._all, self.concurrency)):
                self._workers = [asyncio.create_task(work()) for _ in range(count)]
                await asyncio.gather(*self._workers, return_exceptions=True)
        finally:
            await self.model.close()

    def _interrupted(self) -> None:
        self._interrupts += 1
        self.model.stop()
        if self._interrupts == 1 and self._under_way:
            say(f"stopping: waiting for {self._under_way:,} answers under way (Ctrl-C again: give them up)")
        elif self._interrupts > 1:
            for worker in self._workers:
                worker.cancel()

    async def _first(self) -> None:
        while not self.model.known and await self._one():
            continue

    async def _all(self) -> None:
        while await self._one():
            continue

    async def _one(self) -> bool:
        """Works on the next item. Returns False if there is none or the run stops."""
        try:
            while not self.model.stopping:
                item = next(self.wanted, _END)
                if item is _END:
                    return False
                if item is None:
                    await asyncio.sleep(0)
                    continue
                self._under_way += 1
                try:
                    await self.work(item)
                finally:
                    self._under_way -= 1
                return True
        except Stopped:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = self._failure or error
            self.model.stop()
        return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _a_loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
