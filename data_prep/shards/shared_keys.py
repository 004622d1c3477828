"""What a batch plan needs to know of the train rows: the source of each, and which share a text or document.

Five little-endian int64 files beside the shards, read memory-mapped, so that opening them costs no memory. train.rows:
row ids, sorted by source, ascending within each. The others hold, for one source after the other, the keys that stand
in more than one row of that source; rows are named by their index within the source, keys are 0, 1, … there.
train.key_starts and train.key_rows: by key. train.sharing_rows and train.sharing_keys: the same pairs, by row. The
manifest says how many rows (`sources`) and shared keys (`shared_keys`) each source has, in the order of their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy is loaded where it is needed only: `data_prep --help` answers at once
    import numpy as np

FILES = ("train.rows", "train.key_starts", "train.key_rows", "train.sharing_rows", "train.sharing_keys")


@dataclass(frozen=True)
class Shared:
    """Keys that more than one row of a source holds; rows by their index within the source. int64 all.

    starts: (k + 1,); rows: (m,): those of key i are rows[starts[i]:starts[i + 1]], ascending.
    sharing_rows, sharing_keys: (m,) each, the same pairs sorted by row, then key.
    """

    starts: np.ndarray
    rows: np.ndarray
    sharing_rows: np.ndarray
    sharing_keys: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def members(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows of the given keys: (row, place of its key among the given ones), each key's rows together."""
        places, number = _ranges(self.starts[keys], self.starts[keys + 1])
        return self.rows[places], number

    def keys_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All shared keys of the given rows: (place of the row among the given ones, key)."""
        first = self.sharing_rows.searchsorted(rows, "left")
        places, number = _ranges(first, self.sharing_rows.searchsorted(rows, "right"))
        return number, self.sharing_keys[places]


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers of the ranges starts[i]..stops[i]-1, one range after the other, and which range each is of."""
    import numpy as np

    sizes = stops - starts
    number = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(len(number)) + (starts - sizes.cumsum() + sizes)[number], number


@dataclass(frozen=True)
class SourceRows:
    """The train rows of one source: rows (n,) int64 row ids, ascending."""

    name: str
    rows: np.ndarray
    shared: Shared = field(compare=False)

    def ids(self, index: np.ndarray) -> np.ndarray:
        """Row ids of some of this source's rows by their index within it."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        if last - first == len(self.rows) - 1:  # one run, as of an input file: nothing to read
            return first + index
        return self.rows[index]


def shared_keys(rows: np.ndarray, keys: np.ndarray) -> Shared:
    """From pairs (row, key), (p,) int64 each, in any order, repeated or not: the keys that more than one row holds."""
    import numpy as np

    again = _stands_again(keys)  # most keys are of one row: they leave before the sort by two columns
    rows, keys = rows[again], keys[again]
    order = np.lexsort((rows, keys))
    rows, keys = rows[order], keys[order]
    repeated = (rows[1:] == rows[:-1]) & (keys[1:] == keys[:-1])
    once = np.concatenate((np.ones(min(1, len(rows)), bool), ~repeated))
    rows, keys = rows[once], keys[once]
    again = _stands_again(keys)  # a pair given twice is no sharing
    rows, keys = rows[again], keys[again]
    starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)])) if len(keys) else np.zeros(1)
    starts = starts.astype(np.int64)
    number = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_row = np.lexsort((number, rows))
    return Shared(starts, rows, rows[by_row], number[by_row])


def _stands_again(keys: np.ndarray) -> np.ndarray:
    """(p,) bool: whether the key stands elsewhere too."""
    import numpy as np

    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    again = np.zeros(len(keys), bool)
    again[order[1:][same]] = True
    again[order[:-1][same]] = True
    return again


def by_source(names: list[str], source_of: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> list[SourceRows]:
    """names: the sources, sorted. source_of: (n,) place in names of every train row. rows, keys: (p,) pairs (train row,
    key of one of its texts or documents)."""
    import numpy as np

    order = np.argsort(source_of, kind="stable")
    ends = np.bincount(source_of, minlength=len(names)).cumsum()
    within = np.empty(len(order), np.int64)  # index of each row within its source
    within[order] = np.arange(len(order)) - np.concatenate(([0], ends[:-1]))[source_of[order]]
    again = _stands_again(keys)
    rows, keys = rows[again], keys[again]
    pairs = np.argsort(source_of[rows], kind="stable")
    pair_ends = np.bincount(source_of[rows], minlength=len(names)).cumsum()
    split = zip(names, np.split(order, ends[:-1]), np.split(pairs, pair_ends[:-1]), strict=True)
    return [SourceRows(name, own, shared_keys(within[rows[mine]], keys[mine])) for name, own, mine in split]


def write(folder: Path, sources: list[SourceRows]) -> None:
    """Writes the five files of all sources."""
    import numpy as np

    shared = [source.shared for source in sources]
    columns = (
        [source.rows for source in sources],
        [each.starts for each in shared],
        [each.rows for each in shared],
        [each.sharing_rows for each in shared],
        [each.sharing_keys for each in shared],
    )
    for name, parts in zip(FILES, columns, strict=True):
        np.concatenate(parts).astype("<i8").tofile(folder / name)


def read(folder: Path, rows: dict[str, int], keys: dict[str, int]) -> list[SourceRows]:
    """The memory-mapped sources. rows, keys: how many rows and shared keys each source has, in the files' order."""
    row_ids, key_starts, *members = (_mapped(folder / name) for name in FILES)
    sources = []
    first_row = first_key = first_member = 0
    for name, count in rows.items():
        starts = key_starts[first_key : first_key + keys[name] + 1]
        mine = slice(first_member, first_member + int(starts[-1]))
        shared = Shared(starts, *(column[mine] for column in members))
        sources.append(SourceRows(name, row_ids[first_row : first_row + count], shared))
        first_row, first_key, first_member = first_row + count, first_key + len(starts), mine.stop
    return sources


def _mapped(path: Path) -> np.ndarray:
    import numpy as np

    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, np.int64)
    return np.asarray(np.memmap(path, dtype="<i8", mode="r"))
