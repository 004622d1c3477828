"""Rounds that make one collection equal to another, but for its vectors.

- A round reads the source once, embeds what the target lacks or has otherwise, and deletes what the source lacks.
- Others may write and delete meanwhile. A round that finds nothing to do shows that both hold the same chunks.
- Rank 0 makes the rounds; what is missing is gathered to whole batches, one per rank, which all ranks embed (ranks.py).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.console import EVERY_SECONDS, say
from data_prep.common.workers import batches
from data_prep.stores.base import PAGE, Chunk, Collection, Shifted
from trainer.inference.store_record import STATE, UNFINISHED, WHOLE
from trainer.reindexing.check import Sample, same
from trainer.reindexing.ranks import Ranks

ROUNDS = 3  # of copying what was written meanwhile, before it is given up


class Copy:
    """A source, the target that is filled from it, and what the rounds did."""

    embedded: int  # chunks of all rounds
    cut: int  # texts of all rounds that were truncated
    removed: int  # of all rounds
    total: int  # chunks of the source, counted by the last round
    changed: int  # chunks that the last round wrote or deleted
    complete: bool  # the last round came to its end
    example: str  # id of a chunk that the last round changed, if there is one
    sample: Sample  # of the chunks that the last round read
    seconds: float  # of all rounds

    def __init__(self, source: Collection, filled: Collection, ranks: Ranks, batch: int, where: dict[str, Any] | None):
        self.source, self.filled, self.ranks, self.batch, self.where = source, filled, ranks, batch, where
        self.embedded = self.removed = self.cut = 0
        self._missing: list[Chunk] = []  # read, and not embedded yet
        self.seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        self.total = self.changed = 0
        self.complete, self.example, self.sample = False, "", Sample()

    def once(self) -> int:
        """Writes what is missing or differs and deletes what the source lacks; returns how many chunks that were."""
        self._begin()
        began, total = time.monotonic(), self.source.count(self.where)
        try:
            for page in _with_progress(batches(self.source.chunks(self.where), self.batch), self.source.name, total):
                self._take(page)
                self.total += len(page)
        except Shifted as error:  # the next round reads what this one did not
            say(f"note: {error}")
        else:
            self.complete = True
        self._write(1)
        self.cut = self.ranks.settle()
        if self.complete and self.count() > self.total:
            self._remove()
        self.seconds += time.monotonic() - began
        return self.changed

    def count(self) -> int:
        """Returns the target's number of chunks. An added vector may stay with chunks that no longer fit --where."""
        return self.filled.count(None if self.filled.whole else self.where)

    def _take(self, page: list[Chunk]) -> None:
        ids = [chunk.id for chunk in page]
        stored, rest = self.filled.stored(ids), self.source.rest(ids) if self.filled.whole else {}
        own = self.filled.rest(ids) if rest else {}
        self._missing += [
            replace(one, rest=rest.get(one.id))
            for one in page
            if not (same(one, stored.get(one.id)) and alike(rest.get(one.id), own.get(one.id)))
        ]
        self.sample.add(page)
        self._write(self.batch * self.ranks.world.size)

    def _write(self, least: int) -> None:
        """Embeds and writes what is missing, one batch per rank at a time, while it is `least` chunks or more."""
        size = self.batch * self.ranks.world.size
        while len(self._missing) >= least:
            self._begin_to_change()
            chunks, self._missing = self._missing[:size], self._missing[size:]
            self.ranks.write([*batches(chunks, self.batch)])
            self.embedded += len(chunks)
            self._note(chunks)

    def _remove(self) -> None:
        """Deletes the target's chunks that the source does not have, or that no longer fit --where.

        Those that fit were made equal by this round. So one that differs does not fit, or was changed since it was
        read, and then the next round writes it again.
        """
        gone = []
        for page in batches(self.filled.chunks(), PAGE):
            there = self.source.stored([chunk.id for chunk in page])
            gone += [
                chunk for chunk in page if chunk.id not in there or (self.where and not same(chunk, there[chunk.id]))
            ]
        if gone:
            self._begin_to_change()
        self.filled.remove([chunk.id for chunk in gone])
        self.removed += len(gone)
        self._note(gone)

    def _begin_to_change(self) -> None:
        """Marks a target unfinished that an earlier run left whole, before the first change."""
        if not self.embedded and not self.removed and self.filled.about.get(STATE) == WHOLE:
            self.filled.describe({STATE: UNFINISHED})

    def _note(self, chunks: list[Chunk]) -> None:
        self.changed += len(chunks)
        self.example = chunks[0].id if chunks else self.example

    @property
    def settled(self) -> bool:
        """Returns True if the last round found nothing to do and the numbers of chunks are equal now.

        Equal numbers alone would not tell: a chunk may be written and another one deleted behind the reader.
        """
        return self.complete and not self.changed and self.source.count(self.where) == self.count()

    def settle(self) -> bool:
        """Repeats until a round finds nothing to do. Returns False if others write on."""
        for _ in range(ROUNDS):
            if self.settled:
                return True
            self.once()
        return self.settled

    def watch(self, until: Path, check: Callable[[], None]) -> None:
        """Goes on until the file exists. A round without changes is followed by a pause as long as the round.

        check: is called before each round.
        """
        say(f"watching {self.source.name} until {until} exists")
        while not until.exists():
            check()
            began = time.monotonic()
            if changed := self.once():
                say(f"{self.filled.name}: {changed:,} chunks were written or deleted meanwhile")
                continue
            pause = max(time.monotonic() - began, 1.0)
            while pause > 0 and not until.exists():
                _pause(min(pause, 1.0))
                pause -= 1.0
        check()
        self.once()


def alike(one: Any, other: Any) -> bool:
    """Returns True for equal values of Collection.rest; numbers may differ by rounding, as where a store normalises
    again."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def _with_progress(pages: Iterable[list[Chunk]], name: str, total: int) -> Iterator[list[Chunk]]:
    """Yields the pages and prints the progress every EVERY_SECONDS. (The encoder has a bar for each page.)"""
    done, last = 0, time.monotonic()
    for page in pages:
        yield page
        done += len(page)
        if time.monotonic() - last >= EVERY_SECONDS:
            last = time.monotonic()
            say(f"re-embedding {name}: {done:,} of {total:,} chunks")


def _pause(seconds: float) -> None:
    time.sleep(seconds)
