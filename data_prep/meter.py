"""Progress of work that ends in any order, with what it has brought and the time that is left."""

import sys
import time

from data_prep.progress import EVERY_SECONDS, say


class Meter:
    """Progress of work that ends in any order: a bar on a terminal, elsewhere a plain line about every five seconds."""

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self._bar = self._task = None

    def __enter__(self) -> "Meter":
        self._began = self._last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            label, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self._bar = Progress(
                label, BarColumn(), MofNCompleteColumn(), note, console=Console(stderr=True), transient=True
            )
            self._task = self._bar.add_task(self.label, total=self.total, note="")
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, worked: int, note: str) -> None:
        """done of `total`, of which `worked` took this run's time (the rest was there already)."""
        now = time.monotonic()
        if worked:
            left = (now - self._began) / worked * (self.total - done)
            note += f", {duration(left)} left"
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._last >= EVERY_SECONDS:
            self._last = now
            say(f"{self.label}: {done:,} of {self.total:,}, {note}")


def duration(seconds: float) -> str:
    """A length of time for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
