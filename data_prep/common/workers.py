"""Work in batches, on one core or many. Results come in the order of the tasks, for any number of processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from data_prep.common.errors import Failed

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 2  # tasks that wait for each worker: the next one is there when one ends, and memory stays bounded


def batches(items: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Yields lists of `size` items; the last may be shorter (itertools.batched needs Python 3.12)."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that live as long as the block. With a count of 1 this process does the work.

    Functions, tasks and results are pickled. A task's exception is raised where its result is due, and the remaining
    tasks are cancelled. Failed: a worker was killed from outside.
    """

    def __init__(self, count: int):
        assert count >= 1
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            self._pool = _pool(self.count)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task, in order. Takes tasks from their iterable as workers become free."""
        if self._pool is None:
            yield from map(function, tasks)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) >= AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise _killed() from None

    def aside(self, function: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Starts one task in a process of its own, so that its memory is freed at its end. Returns a function that
        waits for the result. With a count of 1 the task runs here, before this returns."""
        if self._pool is None:
            result = function(*arguments)
            return lambda: result
        pool = _pool(1)
        future = pool.submit(function, *arguments)
        pool.shutdown(wait=False)

        def wait() -> Result:
            try:
                return future.result()
            except BrokenProcessPool:
                raise _killed() from None

        return wait


def _pool(count: int) -> ProcessPoolExecutor:
    # A fork would copy locks that threads of this process hold (Arrow's, the progress bar's).
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Sets up a worker: it ignores Ctrl-C, and ends with the main process, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _killed() -> Failed:
    return Failed(
        "a worker process was killed (out of memory?); run again, with a smaller --workers if it happens again"
    )
