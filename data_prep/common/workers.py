"""Work in batches, on one core, many, or a cluster (cluster/). Results come in the order of the tasks everywhere."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from data_prep.common.errors import Failed

Task = TypeVar("Task")
Result = TypeVar("Result")
CGROUPS = Path("/sys/fs/cgroup")
AHEAD = 2  # tasks that wait for each worker: the next one is there when one ends, and memory stays bounded


def batches(items: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Yields lists of `size` items; the last may be shorter (itertools.batched needs Python 3.12)."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(cgroups: Path = CGROUPS) -> int:
    """Returns the bytes that this machine, or the control group of this process, has left. The cache of files counts
    as free: the system takes it back when memory is asked for."""
    import psutil

    left = [psutil.virtual_memory().available]
    for folder, limit, used, prefix in (
        (cgroups, "memory.max", "memory.current", ""),
        (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # version 1
    ):
        with suppress(OSError, ValueError):  # no such file, or "max"
            left.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left[-1] += sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return min(left)


class Workers:
    """Processes that live as long as the block. With a count of 1 this process does the work.

    Functions, tasks and results are pickled. A task's exception is raised where its result is due, and the remaining
    tasks are cancelled. Failed: a worker was killed from outside. A task may run twice on a cluster, so what it writes
    appears whole (files.named_when_whole). count: tasks that run at once.
    """

    share_disk = True  # every process sees the files of this one

    def __init__(self, count: int):
        assert count >= 1
        self.count = count
        self.ahead = AHEAD * count if count > 1 else 1  # most tasks under way
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            self._pool = _pool(self.count)
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Cancels all tasks and returns when those that run have ended. Threads that wait for a result get an error."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    @property
    def alone(self) -> bool:
        """True where this process does the work."""
        return self.ahead == 1

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yields the result of every task, in order. Takes tasks from their iterable as workers become free."""
        waiting: deque[Callable[[], Result]] = deque()
        for task in tasks:
            waiting.append(self.submit(function, task))
            if len(waiting) >= self.ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """Starts one task. Returns a function that waits for its result; with a count of 1 the task runs in it."""
        if self._pool is None:
            return partial(function, *arguments)
        try:
            return partial(result_of, self._pool.submit(function, *arguments))
        except BrokenProcessPool:
            raise _killed() from None

    def note(self, done: int, seconds: float) -> str:
        """Returns what progress lines add about the workers. done: rows in this time."""
        return ""

    def aside(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Starts one task in a process of its own, so that its memory is freed at its end. Ask for it by result_of.
        With a count of 1 the task runs here, before this returns."""
        if self.alone:
            future: Future[Result] = Future()
            future.set_result(function(*arguments))
            return future
        pool = _pool(1)
        future = pool.submit(function, *arguments)
        pool.shutdown(wait=False)
        return future


def _pool(count: int) -> ProcessPoolExecutor:
    # A fork would copy locks that threads of this process hold (Arrow's, the progress bar's).
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Sets up a worker: it ignores Ctrl-C, and ends with the main process, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def result_of(future: Future[Result]) -> Result:
    """Waits for a task's result. Raises the task's exception, or Failed where its process was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise _killed() from None


def _killed() -> Failed:
    mend = "run again, with a smaller --workers if it happens again"
    return Failed(f"a worker process was killed (out of memory?); {mend}")
