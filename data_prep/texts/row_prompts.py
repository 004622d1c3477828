"""Prompts that rows state themselves, under a key of their metadata.

- An option names the key, alone (prompt) or inside a text ("Instruct: {prompt}\\nQuery:").
- A row without the key, or with null there, has the prompt of its source or of the model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from data_prep.common.errors import BadInput, nearest

SHOWN = 5  # rows that a message names
LONGEST = 100  # prompts of rows that are kept to count their tokens
_KEY = re.compile(r"\{([^{}]+)\}")


class RowPrompt(NamedTuple):
    """The parts of a row's prompt: `before`, the value of its key, `after`."""

    key: str
    before: str = ""
    after: str = ""

    def of(self, metadata: Mapping[str, Any]) -> str | None:
        """Returns a row's prompt; None if it states none. Raises BadInput for a value that is no text."""
        value = metadata.get(self.key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise BadInput(f"key {self.key!r} must be a text, a prompt, not {json.dumps(value)[:40]}")
        return f"{self.before}{value}{self.after}"


@lru_cache(maxsize=64)
def read_row_prompt(text: str) -> RowPrompt:
    """Reads a key, or a text with one {key}. Raises BadInput, which does not name the option."""
    found = list(_KEY.finditer(text))
    if len(found) > 1:
        raise BadInput(f"{text!r} names {len(found)} keys of the row; name one")
    if not found and ("{" in text or "}" in text or not text.strip()):
        raise BadInput(f"{text!r} names no key of the row; write the key, or a text with the key in {{braces}}")
    return RowPrompt(found[0][1], text[: found[0].start()], text[found[0].end() :]) if found else RowPrompt(text)


@dataclass
class Survey:
    """The prompts that rows state on one side: how many do, the longest ones, and values that are no prompt."""

    made: RowPrompt
    rows: int = 0
    stated: int = 0  # rows
    wrong: int = 0  # rows
    longest: dict[str, None] = field(default_factory=dict)  # different prompts
    _keys: dict[str, None] = field(default_factory=dict)  # of the first rows' metadata
    _problems: list[str] = field(default_factory=list)

    def add(self, row: str, metadata: Mapping[str, Any]) -> None:
        """Counts one row. row: its id."""
        self.rows += 1
        if self.rows <= SHOWN:
            self._keys.update(dict.fromkeys(metadata))
        try:
            text = self.made.of(metadata)
        except BadInput as error:
            self.wrong += 1
            self._problems += [f"row {row}: {error}"] if self.wrong <= SHOWN else []
            return
        if text is not None:
            self.stated += 1
            self.longest[text] = None
            if len(self.longest) > 10 * LONGEST:
                self.longest = dict.fromkeys(sorted(self.longest, key=len)[-LONGEST:])

    def merge(self, other: "Survey") -> None:
        """Adds what was counted in later rows."""
        self.rows, self.stated, self.wrong = (getattr(self, n) + getattr(other, n) for n in ("rows", "stated", "wrong"))
        self._problems = (self._problems + other._problems)[:SHOWN]
        self._keys |= other._keys
        self.longest |= other.longest

    def problems(self, option: str) -> list[str]:
        """Returns a line per row whose prompt is no text, or one for a key that no row has. option: names the key."""
        if self.wrong:
            more = [f"{self.wrong - SHOWN:,} more rows like these"] if self.wrong > SHOWN else []
            return [f"{option}: {line}" for line in [*self._problems, *more]]
        if self.stated:
            return []
        has = f"the first ones have {', '.join(map(repr, self._keys))}" if self._keys else "they have no metadata"
        return [f"{option}: no train row has the key {self.made.key!r}; {has}.{nearest(self.made.key, self._keys)}"]

    def notes(self, option: str) -> list[str]:
        """Returns a line about the rows that state no prompt."""
        lacking = self.rows - self.stated
        fate = "they take the prompt of their source or of the model"
        return [f"{option}: {lacking:,} of {self.rows:,} rows have no {self.made.key!r}: {fate}"] if lacking else []
