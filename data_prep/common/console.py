"""Console output of a command: notes and progress on stderr, results on stdout."""

import io
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
EVERY_SECONDS = 5.0
_showing = False


def escape_what_stdout_lacks() -> None:
    """Lets stdout write letters that its encoding lacks as escapes, as stderr does, in place of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Writes a note for people to stderr, so that stdout holds results only."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def say_next(*words: Any) -> None:
    """Writes the command that usually follows, its words quoted for a shell, as the last note of a command."""
    say(f"Next: {shlex.join(str(word) for word in words)}")


def result(line: str) -> None:
    """Writes a result to stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def one_line(text: str, most: int) -> str:
    """Returns the text on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def track(
    iterable: Iterable[T],
    label: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda _: 1,
    note: Callable[[int, float], str] = lambda done, seconds: "",
) -> Iterator[T]:
    """Yields the items and shows progress: a bar on a terminal, elsewhere a plain line about every five seconds.

    size: how much an item adds to the shown count, which ends at `total`. note: text to add, of count and seconds. Of
    nested calls only the outermost shows progress: two bars would overwrite each other.
    """
    global _showing
    if _showing:
        yield from iterable
        return
    _showing = True
    try:
        yield from (_bar if sys.stderr.isatty() else _lines)(iterable, label, total, size, note)
    finally:
        _showing = False


def _lines(iterable: Iterable[T], label: str, total: int | None, size: Callable, note: Callable) -> Iterator[T]:
    began, done = time.monotonic(), 0
    last = began
    for item in iterable:
        now = time.monotonic()
        if now - last >= EVERY_SECONDS:
            last = now
            say(f"{label}: {done:,}" + (f" of {total:,}" if total else "") + note(done, now - began))
        yield item
        done += size(item)


def _bar(iterable: Iterable[T], label: str, total: int | None, size: Callable, note: Callable) -> Iterator[T]:
    began, done = time.monotonic(), 0
    with live_bar() as progress:
        task = progress.add_task(label, total=total)
        for item in iterable:
            yield item
            done += size(item)
            progress.update(task, completed=done, description=label + note(done, time.monotonic() - began))


def live_bar(*columns: Any, transient: bool = True) -> Any:
    """Returns a rich Progress on stderr. columns: default rich's own. transient: erased at its end."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=transient)


class Meter:
    """Progress of work that ends in any order: a bar on a terminal, elsewhere a plain line about every five seconds.
    Shows nothing inside of track(), as two bars would overwrite each other."""

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self._bar = self._task = None

    def __enter__(self) -> "Meter":
        self._began = self._last = time.monotonic()
        if sys.stderr.isatty() and not _showing:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            label, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self._bar = live_bar(label, BarColumn(), MofNCompleteColumn(), note)
            self._task = self._bar.add_task(self.label, total=self.total, note="")
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began

    def show(self, done: int, worked: float, note: str, left: float | None = None) -> None:
        """Shows `done` of `total` and the time left. worked: work done in this run, which sets the speed. left: work
        that is left, in the unit of `worked`; default: the items that are."""
        now = time.monotonic()
        if worked:
            left = self.total - done if left is None else left
            note += f", {duration((now - self._began) / worked * left)} left"
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._last >= EVERY_SECONDS and not _showing:
            self._last = now
            say(f"{self.label}: {done:,} of {self.total:,}, {note}")


def duration(seconds: float) -> str:
    """Returns a duration for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
