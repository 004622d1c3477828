"""The keys of one row, taken one by one with their types checked."""

import ast
import contextlib
import datetime
import decimal
import json
import math
from typing import Any

from data_prep.common.finite import decode_whole, is_finite
from data_prep.records import has_text

MISSING = object()


class Row:
    """The keys of one row, taken one by one; the keys that remain become metadata."""

    def __init__(self, values: dict[str, Any], table: bool):
        self.values, self.table = dict(values), table
        self.found: list[str] = []  # problems
        self.extra: list[str] = []  # keys that became metadata
        self.listed = False  # the positive is a list: several, or documents that a list of labels divides

    def take(self, key: str, required: bool) -> Any:
        value = self.values.pop(key, MISSING)
        if value is MISSING or value is None:
            if required:
                state = "missing" if value is MISSING else "empty" if self.table else "null"
                self.found.append(f"key {key!r} is {state}")
            return None
        return value

    def text(self, key: str, required: bool = True) -> str:
        value = self.take(key, required)
        return "" if value is None else self._text(key, value)

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self.found.append(f"key {where!r} must be a text, not {kind(value)}")
            return ""
        if not value[:1].isalnum() and not has_text(value):
            self.found.append(f"key {where!r} is empty")
        return value

    def one_or_more(self, key: str) -> list[str]:
        """Takes a text, or a list of texts."""
        self.listed = isinstance(self.values.get(key), list)
        return self.texts(key, required=True) if self.listed else [self.text(key)]

    def texts(self, key: str, required: bool = False) -> list[str]:
        """Takes a list of texts. A cell of a table may hold it as JSON, or as Python writes it."""
        value = self.take(key, required)
        if value is None:
            return []
        if self.table and isinstance(value, str):
            value = list_in_cell(value)
        if not isinstance(value, list):
            mend = '; write it as JSON: ["one", "two"]' if self.table else ""
            self.found.append(f"key {key!r} must be a list of texts, not {kind(value)}{mend}")
            return []
        if required and not value:
            self.found.append(f"key {key!r} is empty: it needs at least one text")
        return [self._text(f"{key}[{i}]", text) for i, text in enumerate(value)]

    def name(self, key: str, required: bool = False) -> str:
        """Takes an id: a text, or a whole number that becomes a text (pandas writes 7.0 beside an empty cell)."""
        value = self.take(key, required)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value == "" and not required:  # our own records may have no id yet
            return ""
        return "" if value is None else self._text(key, value)

    def number(self, key: str, value: Any) -> float:
        """Returns a finite number; in a table it may be a text or a decimal."""
        if self.table and isinstance(value, str | decimal.Decimal):
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.found.append(f"key {key!r} must be a number, not {kind(value)}")
            return 0.0
        with contextlib.suppress(OverflowError):  # of a whole number beyond all floats
            if math.isfinite(number := float(value)):
                return number
        shown = value if isinstance(value, float) else "a number beyond 1e308"
        self.found.append(f"key {key!r} is {shown}; it must be a finite number")
        return 0.0

    def score(self, key: str = "score", required: bool = False) -> float | None:
        value = self.take(key, required)
        if value is None:
            return None
        score = self.number(key, value)
        if not 0.0 <= score <= 1.0:
            self.found.append(f"key {key!r} is {score:g}, outside 0..1; divide by the largest grade")
        return score

    def metadata(self) -> dict[str, Any]:
        """Returns the row's own metadata with every key that remains."""
        own = self.take("metadata", required=False)
        if isinstance(own, str) and self.table:  # a table holds it as JSON
            try:
                own = decode_whole(own)
            except ValueError as error:
                self.found.append(f"key 'metadata' is no JSON object: {error}")
                own = None
        if own is not None and not isinstance(own, dict):
            self.found.append(f"key 'metadata' must be an object, not {kind(own)}")
            own = None
        merged = dict(own or {})
        for key, value in self.values.items():
            if value is None and self.table:
                continue
            if merged.get(key, value) != value:
                self.found.append(f"key {key!r} has another value in 'metadata'; keep one of them")
            merged[key] = value
            self.extra.append(key)
        merged = self._plain(merged) if self.table else merged
        try:
            names = [key for key, value in merged.items() if not is_finite(value)]
        except RecursionError:
            self.found.append("key 'metadata' is nested too deep")
            return {}
        text = "holds NaN or infinity, which JSON lacks; write null or leave the key out"
        self.found += [f"key {name!r} {text}" for name in names]
        return merged

    def _plain(self, value: dict[str, Any]) -> dict[str, Any]:
        """Turns dates and decimals of tables, which JSON lacks, into texts."""

        def text(item: Any) -> str:
            if isinstance(item, datetime.date | datetime.time):
                return item.isoformat()
            if isinstance(item, decimal.Decimal):
                return str(item)
            raise TypeError(f"metadata cannot hold {kind(item)}; leave that column out")

        try:
            return json.loads(json.dumps(value, default=text))
        except (TypeError, ValueError) as error:
            self.found.append(str(error))
            return {}


def list_in_cell(text: str) -> Any:
    """Returns the list that a cell of a CSV holds, as JSON or as Python prints it (pandas does); else the text.

    Python reads `['a' 'b']`, as numpy prints two texts, as one text: only what is printed alike again is a list.
    """
    if text.lstrip().startswith("["):
        for read in (decode_whole, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = read(text.strip())
                if isinstance(value, list) and (read is decode_whole or repr(value) == text.strip()):
                    return value
    return text


def kind(value: Any) -> str:
    """Describes the type of a value for people."""
    names = {bool: "true/false", str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    shown = f" ({value!r})" if isinstance(value, int | float | str) and len(repr(value)) < 30 else ""
    return names.get(type(value), type(value).__name__) + shown
