"""Rows on disk that can be read again by number, and evenly spaced samples of rows."""

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.records import Record


class Spool:
    """Rows in a temporary file, readable by number; 8 bytes of memory each. The file lives as long as the object."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        self._ends = array("q", [0])

    def add(self, line: bytes) -> None:
        """Adds the next row, the UTF-8 of its Record.to_json."""
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def add_lines(self, lines: str | bytes, lengths: Iterable[int]) -> None:
        """Adds the next rows: their bytes, or the name of a file that holds them and is deleted."""
        if isinstance(lines, bytes):
            self._file.write(lines)
        else:
            with open(lines, "rb") as file:
                shutil.copyfileobj(file, self._file)
            os.unlink(lines)
        for length in lengths:
            self._ends.append(self._ends[-1] + length)

    def take(self, rows: list[int]) -> list[Record]:
        """Returns the records of these rows, like Rows.take."""
        records = []
        for row in rows:
            self._file.seek(self._ends[row])
            records.append(Record(**json.loads(self._file.read(self._ends[row + 1] - self._ends[row]))))
        return records


def spread(rows_of: dict[str, Any], size: int, least: int = 200) -> dict[str, Any]:
    """Samples about `size` rows, evenly spaced within each source; all rows if there are no more.

    Sources keep their shares, but each has at least `least` rows (or all of its rows). rows_of: source -> its row
    numbers, ascending int64. A pure function: the same rows give the same sample.
    """
    total = sum(map(len, rows_of.values()))
    sample = {}
    for name, rows in rows_of.items():
        wanted = min(len(rows), max(least, size * len(rows) // max(1, total))) if total > size else len(rows)
        sample[name] = rows[evenly(len(rows), wanted)]
    return sample


def evenly(rows: int, size: int) -> Any:
    """Returns the numbers of `size` of the rows, evenly spaced, (size,) int64; all if there are no more."""
    size = min(size, rows)
    return np.arange(size) * rows // max(1, size)
