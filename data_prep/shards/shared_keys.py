"""The sources of train rows, and the keys (texts and documents) that rows of a source share; for the batch plan.

- Five little-endian int64 files beside the shards, read memory-mapped, so that opening them costs no memory.
- train.rows: row ids, sorted by source, ascending within each.
- The other files hold, source after source, the keys of more than one row. Rows are numbered within the source; keys
  are 0, 1, … there. train.key_starts and train.key_rows: sorted by key. train.sharing_rows and train.sharing_keys: the
  same pairs, sorted by row.
- The manifest has the number of rows (`sources`) and shared keys (`shared_keys`) of each source, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.files import HashedFile

FILES = ("train.rows", "train.key_starts", "train.key_rows", "train.sharing_rows", "train.sharing_keys")


@dataclass(frozen=True)
class Shared:
    """The k keys that more than one row of a source holds, as m pairs; int64. Rows are indices within the source."""

    starts: np.ndarray  # (k + 1,): the rows of key i are rows[starts[i]:starts[i + 1]]
    rows: np.ndarray  # (m,) ascending within each key
    sharing_rows: np.ndarray  # (m,) the same pairs, sorted by row, then key
    sharing_keys: np.ndarray  # (m,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all rows of the given keys, key by key: (rows, index of each row's key in `keys`)."""
        places, number = _ranges(self.starts[keys], self.starts[keys + 1])
        return self.rows[places], number

    def keys_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns all shared keys of the given rows: (index of the row in `rows`, keys)."""
        first = self.sharing_rows.searchsorted(rows, "left")
        places, number = _ranges(first, self.sharing_rows.searchsorted(rows, "right"))
        return number, self.sharing_keys[places]


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers of all ranges starts[i]..stops[i]-1, range after range, and the range i of each."""
    sizes = stops - starts
    number = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(number)) + (starts - sizes.cumsum() + sizes)[number], number


@dataclass(frozen=True)
class SourceRows:
    """The train rows of one source."""

    name: str
    rows: np.ndarray  # (n,) int64 row ids, ascending
    shared: Shared = field(compare=False)

    def ids(self, index: np.ndarray) -> np.ndarray:
        """Returns the row ids of rows, by their index within this source."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        if last - first == len(self.rows) - 1:  # consecutive ids, as of one input file: nothing to read
            return first + index
        return self.rows[index]


def shared_keys(rows: np.ndarray, keys: np.ndarray) -> Shared:
    """Finds the keys of more than one row. rows, keys: pairs, (p,) int64 each, in any order, perhaps repeated."""
    again = _stands_again(keys)  # most keys have one row: drop them before the sort by two columns
    rows, keys = rows[again], keys[again]
    order = np.lexsort((rows, keys))
    rows, keys = rows[order], keys[order]
    repeated = (rows[1:] == rows[:-1]) & (keys[1:] == keys[:-1])
    once = np.concatenate((np.ones(min(1, len(rows)), bool), ~repeated))
    rows, keys = rows[once], keys[once]
    again = _stands_again(keys)  # a repeated pair is no sharing
    rows, keys = rows[again], keys[again]
    starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)])) if len(keys) else np.zeros(1)
    starts = starts.astype(np.int64)
    number = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_row = np.lexsort((number, rows))
    return Shared(starts, rows, rows[by_row], number[by_row])


def _stands_again(keys: np.ndarray) -> np.ndarray:
    """Returns (p,) bool: the key occurs more than once."""
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    again = np.zeros(len(keys), bool)
    again[order[1:][same]] = True
    again[order[:-1][same]] = True
    return again


def by_source(names: list[str], source_of: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> list[SourceRows]:
    """Groups train rows and their keys by source.

    names: the sources, sorted. source_of: (n,) index into names of every train row. rows, keys: (p,) pairs of a train
    row and the key of one of its texts or documents.
    """
    order = np.argsort(source_of, kind="stable")
    ends = np.bincount(source_of, minlength=len(names)).cumsum()
    within = np.empty(len(order), np.int64)  # index of each row within its source
    within[order] = np.arange(len(order)) - np.concatenate(([0], ends[:-1]))[source_of[order]]
    again = _stands_again(keys)
    rows, keys = rows[again], keys[again]
    pairs = np.argsort(source_of[rows], kind="stable")
    pair_ends = np.bincount(source_of[rows], minlength=len(names)).cumsum()
    split = zip(names, np.split(order, ends[:-1]), np.split(pairs, pair_ends[:-1]), strict=True)
    return [SourceRows(name, own, shared_keys(within[rows[pair]], keys[pair])) for name, own, pair in split]


def write(folder: Path, sources: list[SourceRows]) -> list[dict[str, Any]]:
    """Writes the five files of all sources; returns their entries of the manifest."""
    shared = [source.shared for source in sources]
    columns = (
        [source.rows for source in sources],
        [each.starts for each in shared],
        [each.rows for each in shared],
        [each.sharing_rows for each in shared],
        [each.sharing_keys for each in shared],
    )
    files = [HashedFile(folder / name) for name in FILES]
    for file, parts in zip(files, columns, strict=True):
        with file:
            file.write(np.concatenate(parts).astype("<i8"))
    return [file.entry(folder) for file in files]


def read(folder: Path, rows: dict[str, int], keys: dict[str, int]) -> list[SourceRows]:
    """Opens the memory-mapped sources. rows, keys: number of rows and shared keys by source, in the files' order."""
    row_ids, key_starts, *members = (_mapped(folder / name) for name in FILES)
    sources = []
    first_row = first_key = first_member = 0
    for name, count in rows.items():
        starts = key_starts[first_key : first_key + keys[name] + 1]
        members_of = slice(first_member, first_member + int(starts[-1]))
        shared = Shared(starts, *(column[members_of] for column in members))
        sources.append(SourceRows(name, row_ids[first_row : first_row + count], shared))
        first_row, first_key, first_member = first_row + count, first_key + len(starts), members_of.stop
    return sources


def _mapped(path: Path) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, np.int64)
    return np.asarray(np.memmap(path, dtype="<i8", mode="r"))
