"""The problems of many rows in many files: one run reports them all, and keeps the first ones in memory."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from data_prep.common.errors import BadInput, nearest
from data_prep.records import Record

SHOWN = 50  # kinds of problems
COUNTED = 10_000  # kinds with counts of their own
PLACES = 4  # of a kind
# What differs between rows with one problem: numbers, values in brackets, ids
_VALUES = re.compile(r"\([^()]*\)|(?<=\bid )'[^']*'|0x[0-9a-f]+|\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


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


@dataclass
class Kind:
    """Problems that are one and the same in several rows."""

    message: str  # of the first row, with its place
    count: int = 0
    places: list[tuple[str, int]] = field(default_factory=list)  # (file, line) of the first rows; empty without lines

    def __str__(self) -> str:
        if self.count == 1:
            return self.message
        later = self.places[1:]
        places = [f"line {line}" if file == self.places[0][0] else f"{file}:{line}" for file, line in later]
        more = [f"{self.count - 1 - len(later):,} more"] if places and self.count - 1 > len(later) else []
        return f"{self.message} ({self.count:,} times{'; also ' if places else ''}{', '.join(places + more)})"

    def to_json(self) -> dict[str, str | int]:
        """Returns the first row's place and reason, and the number of rows."""
        file, line = self.places[0]
        reason = self.message.removeprefix(f"{file}:{line}: ")
        return {"file": file, "line": line, "reason": reason, "count": self.count}


class Kinds:
    """Problems by kind, with counts and first places, in the order of their first rows. Shows the first SHOWN kinds.

    A part of the rows counts more kinds than it shows, since an earlier part may have shown them. Problems of further
    kinds are in `count` alone: messages quote keys of rows, so their number has no bound.
    """

    def __init__(self, counted: int | None = COUNTED) -> None:
        """counted: most kinds with counts. None: no limit, for a part whose size is bounded."""
        self.counted = counted
        self.count = 0
        self._kinds: dict[str, Kind] = {}

    def row(self, problem: Problem) -> None:
        self._add(_VALUES.sub("#", problem.reason), Kind(str(problem), 1, [(problem.file, problem.line)]))

    def message(self, message: str, kind: str) -> None:
        self._add(kind, Kind(message, 1))

    def merge(self, later: "Kinds") -> None:
        """Adds the problems of later rows."""
        uncounted = later.count - sum(kind.count for kind in later._kinds.values())
        for name, kind in later._kinds.items():
            self._add(name, kind)
        self.count += uncounted

    def _add(self, name: str, kind: Kind) -> None:
        self.count += kind.count
        known = self._kinds.get(name)
        if known is not None:
            known.count += kind.count
            known.places += kind.places[: PLACES - len(known.places)]
        elif self.counted is None or len(self._kinds) < self.counted:
            self._kinds[name] = kind

    def shown(self) -> list[Kind]:
        return list(islice(self._kinds.values(), SHOWN))

    def lines(self) -> list[str]:
        """Returns a line for each kind that is shown, and one for the others."""
        shown = self.shown()
        more = self.count - sum(kind.count for kind in shown)
        return [*map(str, shown), *([f"… and {more:,} more"] if more else [])]


def problem_lines(problems: dict[str, Any]) -> list[str]:
    """Returns a line for each kind in a report {"count", "shown": [Kind.to_json]}, and one for the others."""
    lines = [
        "{file}:{line}: {reason}".format(**kind) + (f" ({kind['count']:,} times)" if kind["count"] > 1 else "")
        for kind in problems["shown"]
    ]
    more = problems["count"] - sum(kind["count"] for kind in problems["shown"])
    return lines + ([f"… and {more:,} more"] if more else [])


class Problems:
    """The problems of many rows, by kind.

    With a `sink` bad rows go there and count as skipped. Problems of whole files are always errors.
    """

    def __init__(self, sink: Callable[[Problem], None] | None = None):
        self.sink = sink
        self.kinds = Kinds()
        self.skipped = self.files = 0  # files: problems of whole files
        self.hint = ""  # the last line of the error, after all problems

    @property
    def count(self) -> int:
        return self.kinds.count

    def row(self, problem: Problem, hint: str = "") -> None:
        self.hint = self.hint or hint
        if self.sink:
            self.sink(problem)
            self.skipped += 1
        else:
            self.kinds.row(problem)

    def file(self, message: str, kind: str = "") -> None:
        """Adds a problem of a whole file, or of a row that a later step refuses.

        kind: equal for messages that share a line.
        """
        self.files += 1
        self.kinds.message(message, kind or message)

    def merge(self, later: "Problems") -> None:
        """Adds the problems of later rows."""
        self.kinds.merge(later.kinds)
        self.skipped += later.skipped
        self.files += later.files
        self.hint = self.hint or later.hint

    def check(self) -> None:
        """Raises one BadInput with all problems, if there are any."""
        if self.count:
            raise BadInput([*self.kinds.lines(), *([self.hint] if self.hint else [])])


def field_value(record: Record, field: str, flag: str, problems: Problems) -> str | int | float | None:
    """Returns the metadata field that a flag names; records a problem and returns None if it is no text or number."""
    value = record.metadata.get(field)
    if isinstance(value, str | int | float) and value != "":
        return value
    hint = "" if value is not None else nearest(field, record.metadata)
    state = "is missing" if field not in record.metadata else f"must be a text or a number, not {value!r}"
    known = ", ".join(record.metadata) or "none"
    text = f"metadata field {field!r}, asked for by {flag}, {state} (its fields: {known}).{hint}"
    problems.file(f"record {record.id}: {text}", f"{field} {flag} {value is None}")
    return None
