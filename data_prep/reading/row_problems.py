"""Collecting the problems of many rows of many files, so that one run names them all without holding them all."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.common.errors import BadInput, nearest
from data_prep.records import Record

SHOWN = 50


class BadRow(ValueError):
    """One row that cannot be a record; the text holds every reason."""


class UnknownShape(BadRow):
    """A row whose keys are none of the accepted shapes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One rejected row. line is 1-based: the line of a text file, the row of a table (Parquet, datasets)."""

    file: str
    line: int
    reason: str
    raw: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    def to_json(self) -> str:
        # ensure_ascii: `raw` may hold bytes that were no UTF-8, kept as lone surrogates
        return json.dumps({"file": self.file, "line": self.line, "reason": self.reason, "raw": self.raw})


class Problems:
    """Keeps the first SHOWN problems and counts the rest. With a `sink` bad rows go there and count as skipped;
    problems of whole files are errors either way, because nothing of such a file can be kept."""

    def __init__(self, sink: Callable[[Problem], None] | None = None):
        self.sink = sink
        self.listed: list[str] = []
        self.count = self.skipped = self.files = 0  # files: problems of whole files
        self.rows: list[Problem] = []
        self.unknown_shape = False

    def row(self, problem: Problem, unknown_shape: bool = False) -> None:
        self.unknown_shape |= unknown_shape
        if self.sink:
            self.sink(problem)
            self.skipped += 1
            return
        if len(self.rows) < SHOWN:
            self.rows.append(problem)
        self._list(str(problem))

    def file(self, message: str) -> None:
        self.files += 1
        self._list(message)

    def _list(self, message: str) -> None:
        self.count += 1
        if len(self.listed) < SHOWN:
            self.listed.append(message)

    def merge(self, later: "Problems") -> None:
        """Adds what was found in later rows."""
        self.count += later.count
        self.skipped += later.skipped
        self.files += later.files
        self.listed += later.listed[: SHOWN - len(self.listed)]
        self.rows += later.rows[: SHOWN - len(self.rows)]
        self.unknown_shape |= later.unknown_shape

    def check(self) -> None:
        """Raises one BadInput with everything found."""
        if not self.count:
            return
        lines = list(self.listed)
        if self.count > len(lines):
            lines.append(f"… and {self.count - len(lines):,} more")
        if self.unknown_shape:
            from data_prep.reading.formats import ACCEPTED

            lines.append(f"accepted rows: {ACCEPTED}")
        raise BadInput(lines)


def field_value(record: Record, field: str, flag: str, problems: Problems) -> str | int | float | None:
    """The value of the metadata field that a flag names; without a text or number there, a problem and None."""
    value = record.metadata.get(field)
    if isinstance(value, str | int | float) and value != "":
        return value
    hint = "" if value is not None else nearest(field, record.metadata)
    state = "is missing" if field not in record.metadata else f"must be a text or a number, not {value!r}"
    known = ", ".join(record.metadata) or "none"
    problems.file(
        f"record {record.id}: metadata field {field!r}, asked for by {flag}, {state} (its fields: {known}).{hint}"
    )
    return None
