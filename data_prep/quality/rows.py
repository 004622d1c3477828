"""The rows of an input or shard folder as `inspect` sees them: read once, in tasks, and again by number.

- Shard folders are cut into tasks; with more than one process JSONL and Parquet files are too. Another input is read by
  this process.
- The rows of an input wait in a temporary file of this process; those of a shard folder are taken from the folder.
- Processes of this machine hand over rows in files: a row group may be the whole input. Nodes of a cluster share no
  disk here, so that each sends the rows of a task.
"""

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from data_prep.common.console import track
from data_prep.common.workers import Workers
from data_prep.quality.checks import AT_ONCE, Take
from data_prep.quality.row_keys import Keys
from data_prep.quality.sampling import Spool
from data_prep.reading.files import Span, spans
from data_prep.reading.formats import Notes, read_records, read_span
from data_prep.reading.opening import bytes_of, stem_of
from data_prep.reading.row_problems import Kinds, Problem, Problems
from data_prep.records import Record
from data_prep.remote.copies import local
from data_prep.remote.location import Location
from data_prep.shards.folder import MANIFEST, Rows, open_shards
from data_prep.shards.target import looks_unfinished
from data_prep.texts.lengths import Lengths

SPAN_BYTES = 4 << 20  # of an input, read by one task
SPLIT_ROWS = 20_000  # of a shard folder, read by one task


@dataclass
class Facts:
    """Counts, keys and lengths of rows, for a report."""

    keys: Keys = field(default_factory=Keys)
    splits: Counter[str] = field(default_factory=Counter)
    sources: dict[str, array] = field(default_factory=dict)  # name -> row numbers, from 0
    lengths: Lengths = field(default_factory=Lengths)
    unreadable: Kinds = field(default_factory=Kinds)  # rows that cannot be read as records
    empty: int = 0  # of them, those with an empty text

    def add(self, record: Record, split: str = "") -> None:
        self.sources.setdefault(record.source, array("q")).append(len(self.keys))
        self.splits[split] += 1
        self.keys.add(record)
        self.lengths.add(record)

    def reject(self, problem: Problem) -> None:
        self.empty += "is empty" in problem.reason
        self.unreadable.row(problem)

    def merge(self, later: "Facts") -> None:
        """Adds the facts of later rows."""
        before = len(self.keys)
        for name, numbers in later.sources.items():
            shifted = np.frombuffer(numbers, np.int64) + before
            self.sources.setdefault(name, array("q")).frombytes(shifted.tobytes())
        self.splits.update(later.splits)
        self.keys.merge(later.keys)
        self.lengths.merge(later.lengths)
        self.unreadable.merge(later.unreadable)
        self.empty += later.empty

    @property
    def train(self) -> int:
        """Rows outside the eval split."""
        return len(self.keys) - self.splits["eval"]


def read_rows(
    path: Path | Location, positive: str | None, columns: dict[str, str] | None, pool: Workers
) -> tuple[Facts, Take]:
    """Reads every row once. Returns the facts, and a function that reads rows again by number.

    Bad rows are facts. Raises BadInput for an input that cannot be read.
    """
    folder = local(path) if path.is_dir() else path
    if folder.is_dir() and ((folder / MANIFEST).exists() or looks_unfinished(folder)):
        return _read_folder(path, folder, pool)
    return _read_input(folder, positive, columns, pool)


def useful_workers(path: Path | Location, most: int) -> int:
    """Returns one worker per task of reading, at most `most`; starting more takes longer than their work."""
    if path.is_dir():
        return most
    return min(most, max(1, -(-bytes_of(path) // SPAN_BYTES)))


class _SplitTask(NamedTuple):
    """Some rows of a split of a shard folder."""

    path: Path | Location
    split: str
    rows: range


def _read_folder(path: Path | Location, folder: Path, pool: Workers) -> tuple[Facts, Take]:
    shards = open_shards(folder)
    splits = {name: shards.split(name) for name in shards.splits}
    tasks = [
        _SplitTask(path, name, range(first, min(first + SPLIT_ROWS, len(rows))))
        for name, rows in splits.items()
        for first in range(0, len(rows), SPLIT_ROWS)
    ]
    facts, total = Facts(), sum(map(len, splits.values()))
    for piece in track(pool.map(_facts_of, tasks), f"reading {path.name}", total, _count, pool.note):
        facts.merge(piece)
    return facts, lambda numbers: _take(splits.values(), numbers)


def _facts_of(task: _SplitTask) -> Facts:
    facts, rows = Facts(), open_shards(local(task.path)).split(task.split)
    for first in range(task.rows.start, task.rows.stop, AT_ONCE):
        for record in rows.take(range(first, min(first + AT_ONCE, task.rows.stop))):
            facts.add(record, task.split)
    return facts


def _count(facts: Facts) -> int:
    return len(facts.keys)


def _take(splits: Iterable[Rows], numbers: list[int]) -> list[Record]:
    """Reads rows of all splits by ascending number; numbers go on from split to split."""
    records, before = [], 0
    for split in splits:
        records += split.take([n - before for n in numbers if before <= n < before + len(split)])
        before += len(split)
    return records


class _SpanTask(NamedTuple):
    """Some lines or row groups of an input."""

    path: Path | Location
    span: Span
    positive: str | None
    columns: dict[str, str] | None
    folder: str | None  # for the lines; None: they travel


@dataclass
class _Piece:
    """The result of a task."""

    facts: Facts = field(default_factory=lambda: Facts(unreadable=Kinds(counted=None)))
    lines: str | bytes = b""  # of the spool: a file, or they themselves
    lengths: array = field(default_factory=partial(array, "q"))  # of each line
    problems: Problems = field(default_factory=Problems)  # of the whole input
    notes: Notes = field(default_factory=Notes)


def _read_input(
    path: Path | Location, positive: str | None, columns: dict[str, str] | None, pool: Workers
) -> tuple[Facts, Take]:
    facts, spool, problems = Facts(), Spool(), Problems()
    cut = spans(path, SPAN_BYTES)
    first = next(cut, None)
    if first is None or pool.alone:
        problems.sink = facts.reject
        records = read_records(path, positive=positive, columns=columns, problems=problems)
        for record in track(records, f"reading {path.name}"):
            facts.add(record)
            spool.add(record.to_json().encode())
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a second Ctrl-C ends no task
            shared = folder if pool.share_disk else None
            tasks = (_SpanTask(path, span, positive, columns, shared) for span in chain([first], cut))
            try:
                _read_spans(tasks, pool, facts, spool, problems)
            except BaseException:
                pool.stop()  # a task that still writes would keep the folder
                raise
    if problems.files:
        problems.check()
    return facts, spool.take


def _read_spans(tasks: Iterator[_SpanTask], pool: Workers, facts: Facts, spool: Spool, problems: Problems) -> None:
    """Reads all spans of an input, and adds what they hold."""
    first = next(tasks)
    notes = Notes()
    pieces = pool.map(_read_span, chain([first], tasks))
    for piece in track(pieces, f"reading {first.path.name}", None, lambda one: len(one.lengths), pool.note):
        facts.merge(piece.facts)
        spool.add_lines(piece.lines, piece.lengths)
        problems.merge(piece.problems)
        notes.merge(piece.notes)
    notes.close(first.path, problems, first.columns)


def _read_span(task: _SpanTask) -> _Piece:
    piece = _Piece()
    piece.problems.sink = piece.facts.reject
    source = stem_of(task.path.resolve())
    with _file_in(task.folder) as file:
        for record in _records_of(task, source, piece):
            piece.facts.add(record)
            piece.lengths.append(file.write(record.to_json().encode()))
        file.seek(0)
        piece.lines = file.name if task.folder else file.read()
    piece.problems.sink = None  # the main process has a sink of its own
    return piece


def _file_in(folder: str | None) -> IO[bytes]:
    """Opens a new file, which stays in the folder. None: a nameless one, which goes with a task that is killed too."""
    return tempfile.NamedTemporaryFile(dir=folder, delete=False) if folder else tempfile.TemporaryFile()


def _records_of(task: _SpanTask, source: str, piece: _Piece) -> Iterator[Record]:
    return read_span(task.path, task.span, task.positive, source, piece.problems, piece.notes, task.columns)
