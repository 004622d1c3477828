"""The record: the one type that all sources become and all consumers read."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """One training row."""

    query: str
    positives: list[str]  # relevant texts, at least one
    negatives: list[str] = field(default_factory=list)  # hard negatives, any number
    score: float | None = None  # graded similarity of query and positives[0], in 0..1
    teacher_scores: list[float] | None = None  # of each positive, then of each negative
    source: str = ""
    id: str = ""
    doc_ids: list[str] = field(default_factory=list)  # documents of the positives, for splitting and masking; or empty
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON values of all other keys

    def problems(self) -> list[str]:
        """Lists the problems of this record by key; empty if it can be trained on."""
        problems = []
        if not isinstance(self.query, str) or not self.query.strip():
            problems.append("query is empty")
        if not self.positives:
            problems.append("positives is empty")
        for name, texts in (("positives", self.positives), ("negatives", self.negatives)):
            empty = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
            problems += [f"{name}[{i}] is empty" for i in empty]
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            problems.append(f"score {self.score} is outside 0..1")
        expected = len(self.positives) + len(self.negatives)
        if self.teacher_scores is not None and len(self.teacher_scores) != expected:
            problems.append(f"teacher_scores has {len(self.teacher_scores)} values for {expected} documents")
        if self.doc_ids and len(self.doc_ids) != len(self.positives):
            problems.append(f"doc_ids has {len(self.doc_ids)} values for {len(self.positives)} positives")
        return problems

    def to_json(self) -> str:
        """Returns a JSONL line without the newline; Record(**json.loads(line)) is the inverse."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, ensure_ascii=False)


def has_text(text: str) -> bool:
    """Returns True if a character shows: one that is neither white space nor of zero width."""
    return any(char.isprintable() and not char.isspace() for char in text)


def normalise(text: str) -> str:
    """Normal form of a text, by which texts are compared: NFKC, case-folded, white space collapsed."""
    if _is_plain(text):
        return text.strip().lower()
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def count_words(text: str) -> int:
    """Returns len(text.split()), mostly without making the words."""
    if _is_plain(text):
        trimmed = text.strip()
        return trimmed.count(" ") + 1 if trimmed else 0
    return len(text.split())


def _is_plain(text: str) -> bool:
    """Returns True for printable ASCII with single spaces: only case and ends differ from the normal form."""
    return text.isascii() and text.isprintable() and "  " not in text


def text_key(text: str) -> int:
    """A 63-bit key of the normalised text, the same on every machine: equal keys mean equal texts."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest(), "big") >> 1


def id_key(name: str) -> int:
    """A 63-bit key of an id: equal keys mean equal ids, to the letter. No text has the key of an id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"id").digest(), "big") >> 1


def document_text(title: str | None, text: str) -> str:
    """Joins title and text: the form in which a document is searched and embedded."""
    return f"{title}\n{text}" if title else text


# Metadata of a variant (augment.py): the id of the record it was made from, and that record's query.
PARENT, PARENT_QUERY = "parent", "parent_query"


def is_variant(record: Record) -> bool:
    return isinstance(record.metadata.get(PARENT_QUERY), str)


def query_key(record: Record) -> int:
    """Key of a row's question: of its query, or for a variant of its parent's query.

    Rows of an equal question must not have each other's positives as negatives.
    """
    return text_key(record.metadata[PARENT_QUERY] if is_variant(record) else record.query)
