"""The problems of many rows in many files: one run reports them all, and keeps the first ones in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.common.errors import BadInput, nearest
from data_prep.records import Record

SHOWN = 50


class BadRow(ValueError):
    """A row that cannot be a record; the text holds every reason. hint: the last line of the error."""

    hint = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A rejected row."""

    file: str
    line: int  # from 1: the line of a text file, the row of a table (Parquet, datasets)
    reason: str
    raw: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    def to_json(self) -> str:
        # ensure_ascii: `raw` may hold bytes that were no UTF-8, kept as lone surrogates
        return json.dumps({"file": self.file, "line": self.line, "reason": self.reason, "raw": self.raw})


class Problems:
    """Keeps the first SHOWN problems and counts the rest.

    With a `sink` bad rows go there and count as skipped. Problems of whole files are always errors.
    """

    def __init__(self, sink: Callable[[Problem], None] | None = None):
        self.sink = sink
        self.listed: list[str] = []
        self.count = self.skipped = self.files = 0  # files: problems of whole files
        self.rows: list[Problem] = []
        self.hint = ""  # the last line of the error, after all problems

    def row(self, problem: Problem, hint: str = "") -> None:
        self.hint = self.hint or hint
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
        """Adds the problems of later rows."""
        self.count += later.count
        self.skipped += later.skipped
        self.files += later.files
        self.listed += later.listed[: SHOWN - len(self.listed)]
        self.rows += later.rows[: SHOWN - len(self.rows)]
        self.hint = self.hint or later.hint

    def check(self) -> None:
        """Raises one BadInput with all problems, if there are any."""
        if not self.count:
            return
        lines = list(self.listed)
        if self.count > len(lines):
            lines.append(f"… and {self.count - len(lines):,} more")
        if self.hint:
            lines.append(self.hint)
        raise BadInput(lines)


def field_value(record: Record, field: str, flag: str, problems: Problems) -> str | int | float | None:
    """Returns the metadata field that a flag names; records a problem and returns None if it is no text or number."""
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
