"""The one record type that every source becomes and every consumer reads."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """One training row.

    query: the text that searches. positives: texts it should find (at least one). negatives: hard negatives, ragged,
    may be empty. score: graded similarity of query and positives[0] in 0..1, or None. teacher_scores: one score for
    each positive, then for each negative, or None. doc_ids: ids of the positives' documents (same length as positives,
    or empty), for splitting and masking. metadata: JSON values that no other field holds.
    """

    query: str
    positives: list[str]
    negatives: list[str] = field(default_factory=list)
    score: float | None = None
    teacher_scores: list[float] | None = None
    source: str = ""
    id: str = ""
    doc_ids: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What is wrong with this record, in the words of its keys; empty when it can be trained on."""
        found = []
        if not isinstance(self.query, str) or not self.query.strip():
            found.append("query is empty")
        if not self.positives:
            found.append("positives is empty")
        for name, texts in (("positives", self.positives), ("negatives", self.negatives)):
            bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
            found += [f"{name}[{i}] is empty" for i in bad]
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            found.append(f"score {self.score} is outside 0..1")
        expected = len(self.positives) + len(self.negatives)
        if self.teacher_scores is not None and len(self.teacher_scores) != expected:
            found.append(f"teacher_scores has {len(self.teacher_scores)} values for {expected} documents")
        if self.doc_ids and len(self.doc_ids) != len(self.positives):
            found.append(f"doc_ids has {len(self.doc_ids)} values for {len(self.positives)} positives")
        return found

    def to_json(self) -> str:
        """One JSONL line (without the newline); the inverse of Record(**json.loads(line))."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, ensure_ascii=False)


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case-folded, white space collapsed."""
    if _is_plain(text):
        return text.strip().lower()
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def count_words(text: str) -> int:
    """len(text.split()), without making the words where that can be told."""
    if _is_plain(text):
        trimmed = text.strip()
        return trimmed.count(" ") + 1 if trimmed else 0
    return len(text.split())


def _is_plain(text: str) -> bool:
    """Printable ASCII with single spaces, as most texts are: only case and the ends can differ from its normal form."""
    return text.isascii() and text.isprintable() and "  " not in text


def text_key(text: str) -> int:
    """A 63-bit key of the normalised text, the same on every machine: equal keys mean equal texts."""
    return int.from_bytes(hashlib.blake2b(normalise(text).encode(), digest_size=8).digest(), "big") >> 1


def document_text(title: str | None, text: str) -> str:
    """What is searched and embedded of a document that has a title."""
    return f"{title}\n{text}" if title else text


# Metadata of a variant (augment.py): the id of the record it was made from, and that record's query.
PARENT, PARENT_QUERY = "parent", "parent_query"


def is_variant(record: Record) -> bool:
    return isinstance(record.metadata.get(PARENT_QUERY), str)


def query_key(record: Record) -> int:
    """Equal keys: the same question, so that a positive of one row is no negative of the other. It is the key of the
    query's text, or, for a variant, of its parent's."""
    return text_key(record.metadata[PARENT_QUERY] if is_variant(record) else record.query)
