"""Mutations of texts, values and bytes, in spellings that real files have."""

import gzip
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

INVISIBLE = ["\u200b", "\ufeff", "\u00ad", "\u2060", "\u200e", "\u202e", "\ue000"]
SEPARATORS = [
    "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\r", "\n", "\r\n", "\n\r", "\t",
]  # fmt: skip
CONTROLS = ["\x00", "\x01", "\x07", "\x08", "\x1a", "\x1b[31m", "\x7f", "\x9b", "\ufffe", "\uffff", "\ufffd"]
SURROGATES = ["\ud83d", "\ude00", "\udc80", "\udcff", "\ud83d\ude00"]
WORDS = [
    "", " ", "a", "NaN", "nan", "Infinity", "-Infinity", "inf", "null", "None", "true", "false", "~", "yes", "-", "0",
    "1", "1.0", "007", "1e5", "1e-4", "1e999", "-1", "0x1F", "1_000", "1,5", "½", "²", "١٢", "９", "9" * 400,
    "9" * 5000,
    '"', "'", '""', "\\", "\\u0000", "\\ud83d", "[]", "{}", "[", "{", '["a","b"]', '{"a":1}', ",", ";", "|", ":", "#",
    "=", "=1+1", "%", "%s", "{}", "{context}", "$HOME", "~/x", "../..", "/", "//", "http://[", "http://a:b@c",
    "file:///",
    "😀", "👩‍👩‍👧", "e\u0301", "İ", "ß", "ſ", "ﬁ", "ﷺ", "ǆ", "한글", "हिन्दी", "ไทย", "العربية", "a" * 3000,
    "word " * 700,
    "<b>", "</think>", "<think>", "&lt;", "&#0;", "<!--", "]]>", "<a href='", "```", "---", "...",
    "!!python/name:os.system",
]  # fmt: skip
KEYS = [
    "query", "positive", "positives", "negative", "negatives", "negative_1", "hard_negatives", "score", "scores",
    "label",
    "labels", "teacher_scores", "neg_scores", "id", "_id", "doc_ids", "metadata", "source", "context", "answer",
    "text",
    "title", "parent", "parent_query", "anchor", "pos", "neg", "item", "chunk_id", "Score", "scоre", " query", "",
    "ｑｕｅｒｙ",
    "negative 12345678901234567890", "score\n", "irrelevant", "is_relevant", "positive_url",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 0.5, 1.0, -0.0, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400, True, False,
]  # fmt: skip
NAN, INF = float("nan"), float("inf")


class Draw:
    """Choices of one case; the first of a sequence is the plainest, towards which hypothesis shrinks."""

    def __init__(self, draw: Callable):
        self.draw = draw

    def pick(self, options: Sequence) -> Any:
        return options[self.draw(st.integers(0, len(options) - 1))]

    def number(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, most))

    def chance(self, of: int) -> bool:
        """True once in `of` times."""
        return self.draw(st.integers(0, of - 1)) == of - 1

    def times(self, most: int) -> range:
        return range(self.draw(st.integers(0, most)))

    def word(self) -> str:
        if self.chance(6):
            return self.draw(st.text(max_size=8))
        return self.pick(self.pick([WORDS, SEPARATORS, INVISIBLE, CONTROLS, SURROGATES]))

    def text(self) -> str:
        """A short text with perhaps something odd in it."""
        plain = self.pick(
            ["a text", "What is mould?", "Größe der Ölpumpe", "水泵的压力", "1 bar", "the valve opens at 5 bar"]
        )
        odd = self.word() if self.chance(3) else ""
        return self.pick([plain + odd, odd + plain, plain[:2] + odd + plain[2:], odd or plain])

    def value(self, depth: int = 3) -> Any:
        """A JSON value, perhaps one that JSON lacks."""
        kind = self.number(0, 6 if depth else 3)
        if kind == 0:
            return self.text()
        if kind == 1:
            return self.pick([*NUMBERS, NAN, INF, -INF])
        if kind == 2:
            return self.pick([None, "", [], {}, [[]], [None], [""]])
        if kind == 3:
            return self.word()
        if kind == 4:
            return [self.value(depth - 1) for _ in self.times(3)]
        if kind == 5:
            return {self.key(): self.value(depth - 1) for _ in self.times(3)}
        return nested(self.value(0), self.pick([3, 50, 200, 500, 900, 980, 3000]), self.pick([None, "a"]))

    def key(self) -> str:
        return self.word() if self.chance(3) else self.pick(KEYS)

    def mutated(self, value: Any) -> Any:
        """Returns the value with one change somewhere in it."""
        if isinstance(value, dict) and value and not self.chance(4):
            return self._mutated_object(value)
        if isinstance(value, list) and value and not self.chance(4):
            at = self.number(0, len(value) - 1)
            change = self.number(0, 3)
            if change == 0:
                return [*value[:at], self.mutated(value[at]), *value[at + 1 :]]
            if change == 1:
                return value[:at] + value[at + 1 :]
            return [*value[:at], *([value[at]] * self.pick([2, 40]) if change == 2 else [self.value()]), *value[at:]]
        if isinstance(value, str) and self.chance(2):
            at = self.number(0, len(value))
            return value[:at] + self.word() + value[at:]
        return self.pick([self.value, lambda: [value], lambda: {"a": value}, lambda: dumps(value), lambda: None])()

    def _mutated_object(self, value: dict) -> dict:
        key = self.pick(list(value))
        change = self.number(0, 4)
        if change <= 1:
            return value | {key: self.mutated(value[key])}
        if change == 2:
            return {name: inner for name, inner in value.items() if name != key}
        if change == 3:
            return value | {self.key(): self.value()}
        name = str(key)  # YAML has keys that are numbers
        new = self.pick([self.key(), name.upper(), f"{name} ", name.title(), f"{name}_1"])
        return {new if old == key else old: inner for old, inner in value.items()}

    def bytes_of(self, text: str) -> bytes:
        """Encodes a text, as a rule in UTF-8, and damages it at times as editors, shells and transfers do."""
        if self.chance(3):
            text = self.damaged(text)
        if self.chance(8):
            text = text.replace("\n", self.pick(["\r\n", "\r", "\n\n", "\u2028", "\x85", "\n\r"]))
        codec = self.pick(
            ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1251", "shift-jis"]
        )
        body = text.encode(codec, "surrogatepass" if codec.startswith("utf") else "replace")
        return self.damaged_bytes(body) if self.chance(4) else body

    def damaged(self, text: str) -> str:
        """Returns the text with a part removed, repeated, moved or replaced."""
        start = self.number(0, len(text))
        stop = min(len(text), start + self.pick([0, 1, 2, 5, 20, 100]))
        change = self.number(0, 4)
        if change == 0:
            return text[:start] + text[stop:]
        if change == 1:
            return text[:start] + self.word() + text[start:]
        if change == 2:
            return text[:start] + text[start:stop] * self.pick([2, 3, 300]) + text[stop:]
        if change == 3:
            return text[:start]
        return (
            text[:start]
            + self.pick(["NaN", "null", '"', ",", "1e999", "9" * 5000, "[" * 3000, "\\u", "{", "}", "-"])
            + text[stop:]
        )

    def damaged_bytes(self, body: bytes) -> bytes:
        start = self.number(0, len(body))
        change = self.number(0, 5)
        if change == 0:
            return body[:start]
        if change == 1:
            odd = [
                b"\xff",
                b"\x00",
                b"\xc3",
                b"\xed\xa0\x80",
                b"\xf4\x90\x80\x80",
                b"\xef\xbb\xbf",
                b"\xfe\xff",
                b"\x1a",
                b"\r",
            ]
            return body[:start] + self.pick(odd) + body[start:]
        if change == 2:
            return self.pick(
                [
                    b"",
                    b"\xef\xbb\xbf",
                    b"\n",
                    b" ",
                    b"\x00" * 64,
                    b"PK\x03\x04",
                    b"PAR1",
                    b"%PDF-1.4",
                    b"\xef\xbb\xbf" * 2,
                ]
            )
        if change == 3:
            packed = gzip.compress(body, mtime=0)
            return packed if self.chance(2) else packed[: len(packed) // 2]
        if change == 4:
            return body[:start] + self.draw(st.binary(max_size=8)) + body[start + 4 :]
        return self.pick([b"\xef\xbb\xbf", b"\n\n", b"\x00", b" " * 4100]) + body


def nested(value: Any, depth: int, key: str | None) -> Any:
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


def dumps(value: Any, **options) -> str:
    """Writes JSON however deep it is, in the ways of several writers; numbers beyond JSON as Python writes them."""
    try:
        return json.dumps(value, **options)
    except (RecursionError, ValueError):
        return "[" * 3000 + "]" * 3000
