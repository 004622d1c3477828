"""Prompts of single sources and rows, in place of the model's: one owner for shards, training, checks and export.

- A text's prompt is its row's, else its source's, else the model's. Each side (query, passage) is decided by itself.
- A row states its prompt under a key of its metadata (row_prompts.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from data_prep.records import Record
from data_prep.texts.row_prompts import RowPrompt, read_row_prompt
from data_prep.texts.tokenizer_rules import TextRules

SIDES = ("query", "passage")


class Pair(NamedTuple):
    """The prompts of a row's texts."""

    query: str
    passage: str


def without_room(
    prompts: Iterable[str], max_len: int, option: str, length: str, count: Callable[[str], int]
) -> list[str]:
    """Returns a problem for the longest of one side's prompts, if it leaves no token for a text.

    option: names the prompts. length: names max_len. count: tokens of a text, special ones included.
    """
    found = {prompt: count(prompt) for prompt in prompts if prompt}
    longest = max(found, key=found.__getitem__, default="")
    if not longest or found[longest] < max_len:
        return []
    shown = longest if len(longest) <= 40 else f"{longest[:40]}…"
    has = f"{shown!r} has {found[longest]} tokens with the special ones, which leaves none of {max_len} for the text"
    return [f"{option}: {has}; shorten it or raise {length}"]


@dataclass(frozen=True)
class OwnPrompts:
    """Prompts of sources and rows. None, and a missing source: the prompt of the next owner."""

    query: Mapping[str, str] = field(default_factory=dict)  # by source
    passage: Mapping[str, str] = field(default_factory=dict)  # by source
    row_query: str | None = None  # see read_row_prompt
    row_passage: str | None = None

    def __bool__(self) -> bool:
        return any((self.query, self.passage, self.row_query, self.row_passage))

    @property
    def of_rows(self) -> dict[str, RowPrompt]:
        """The prompts of rows by side, where there are any."""
        texts = {side: getattr(self, f"row_{side}") for side in SIDES}
        return {side: read_row_prompt(text) for side, text in texts.items() if text is not None}

    def of_source(self, rules: TextRules, source: str) -> Pair:
        """Returns the prompts of a source's texts."""
        return Pair(self.query.get(source, rules.query_prompt), self.passage.get(source, rules.passage_prompt))

    def of(self, rules: TextRules, source: str, metadata: Mapping[str, Any]) -> Pair:
        """Returns the prompts of a row's texts. Raises BadInput for a prompt of the row that is no text."""
        prompts = self.of_source(rules, source)
        own = {side: made.of(metadata) for side, made in self.of_rows.items()}
        return prompts._replace(**{side: text for side, text in own.items() if text is not None})

    def of_record(self, rules: TextRules, record: Record) -> Pair:
        """Same as `of`, of a record."""
        return self.of(rules, record.source, record.metadata)

    def lines(self, rules: TextRules) -> list[str]:
        """Returns a line per source with prompts of its own, and per side on which rows have some."""
        sources = dict.fromkeys([*self.query, *self.passage])
        pairs = {name: self.of_source(rules, name) for name in sources}
        lines = [f"source {name!r}: query {pair.query!r}, passage {pair.passage!r}" for name, pair in pairs.items()]
        made = [(side, f"{prompt.before}{{{prompt.key}}}{prompt.after}") for side, prompt in self.of_rows.items()]
        return lines + [f"rows: {side} {text!r}" for side, text in made]

    @property
    def named(self) -> dict[str, str]:
        """The prompts of sources by the names under which a model folder states them."""
        names = (("query", self.query), ("document", self.passage))
        return {f"{source}-{side}": text for side, by_source in names for source, text in sorted(by_source.items())}

    def fingerprint(self, rules: TextRules) -> str:
        """The sha256 of these prompts and the model's."""
        values = [rules.query_prompt, rules.passage_prompt, self.for_manifest()]
        return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def for_manifest(self) -> dict[str, Any]:
        """Returns plain values; OwnPrompts(**values) is the inverse."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(self).items()}
