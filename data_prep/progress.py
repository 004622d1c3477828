"""What a command says while it works: notes and progress on stderr, results on stdout."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY_SECONDS = 5.0
_showing = False


def say(line: str) -> None:
    """A note for people, on stderr, so that stdout holds results only."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def result(line: str) -> None:
    """A result, on stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def track(iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; shows a bar on a terminal, elsewhere (a log file) a plain line about every five seconds.

    Only the outermost of several at a time shows anything: two bars would write over each other.
    """
    global _showing
    if _showing:
        yield from iterable
        return
    _showing = True
    try:
        yield from _shown(iterable, label, total)
    finally:
        _showing = False


def _shown(iterable: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(iterable, label, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - last >= EVERY_SECONDS:
            last = now
            say(f"{label}: {done:,}" + (f" of {total:,}" if total else ""))
        yield item
