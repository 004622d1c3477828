"""Which row goes to train and which to eval: by document, without duplicates and without leakage."""

import hashlib
import json
from array import array
from dataclasses import dataclass, field
from typing import Any

from data_prep.collect import Problems, field_value
from data_prep.records import Record, is_variant, query_key, text_key

TRAIN, EVAL, DROPPED = 0, 1, 2


def _key(kind: str, value: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{kind}:{value}".encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Leak:
    """A key that rows of both splits hold; rows by their place among the kept rows."""

    key: int
    train_row: int
    eval_row: int


@dataclass
class SplitPlan:
    """What is kept of each record (64-bit keys, no text), and the rule that assigns kept rows to splits.

    by: None groups rows that share a document, a positive text or a query text, directly or through other rows;
    a metadata field's name groups by that field's value alone. fraction: expected share of groups in eval, 0..1.
    """

    by: str | None
    fraction: float
    seed: int
    duplicates: int = 0
    scored: int = 0  # rows with a graded score
    kept_in_train: int = 0  # rows of a group too large for eval
    _keys: array = field(default_factory=lambda: array("q"))  # of all rows, one after the other
    _ends: array = field(default_factory=lambda: array("q"))
    _group: array = field(default_factory=lambda: array("q"))  # with `by`: the hashed value per row
    _seen: dict[bytes, int] = field(default_factory=dict)
    _late: dict[int, list[int]] = field(default_factory=dict)  # row -> document keys of its removed duplicates

    def add(self, record: Record, problems: Problems) -> bool:
        """Takes the next record; False for an exact duplicate: same normalised query and positives, same score. Of
        a variant the query must be the same letter by letter: it may differ from its parent in nothing but case."""
        value = field_value(record, self.by, "--split-by", problems) if self.by else None
        if self.by and value is None:
            return True
        texts = [text_key(record.query), *(text_key(text) for text in record.positives)]
        asked = record.query if is_variant(record) else texts[0]
        same = repr((asked, sorted(texts[1:]), record.score)).encode()
        same = hashlib.blake2b(same, digest_size=16).digest()
        documents = [_key("document", doc) for doc in record.doc_ids]
        if same in self._seen:
            self.duplicates += 1
            self._late.setdefault(self._seen[same], []).extend(documents)
            return False
        self._seen[same] = len(self._ends)
        self.scored += record.score is not None
        self._keys.extend(dict.fromkeys([query_key(record), *texts, *documents]))
        self._ends.append(len(self._keys))
        if self.by:
            self._group.append(_key("field", json.dumps(value)))
        return True

    def __len__(self) -> int:
        return len(self._ends)

    def keys(self, row: int) -> list[int]:
        """Keys of the row's query (of a variant also its parent's), positives and documents."""
        start = self._ends[row - 1] if row else 0
        return [*self._keys[start : self._ends[row]], *self._late.get(row, ())]

    def train_pairs(self, splits: bytearray) -> tuple[Any, Any]:
        """(row among the train rows, key): every key of every train row; int64 arrays of one length."""
        import numpy as np

        late = [(row, key) for row, keys in self._late.items() for key in keys]
        late_rows, late_keys = np.array(late, np.int64).reshape(-1, 2).T
        ends = np.frombuffer(self._ends, np.int64)
        rows = np.concatenate((np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0)), late_rows))
        keys = np.concatenate((np.frombuffer(self._keys, np.int64), late_keys))
        is_train = np.frombuffer(splits, np.uint8) == TRAIN
        held = is_train[rows]
        return (is_train.cumsum() - 1)[rows[held]], keys[held]

    def assign(self) -> bytearray:
        """TRAIN or EVAL for each kept row: a group is in eval when its hash with the seed is below the fraction,
        whatever the order of rows. A group of more than half of all rows stays in train (counted in kept_in_train)."""
        groups = self._group if self.by else self._connected()
        sizes: dict[int, int] = {}
        for group in groups:
            sizes[group] = sizes.get(group, 0) + 1
        chosen = {group for group in sizes if self._share(group) < self.fraction}
        for group in [group for group in chosen if 2 * sizes[group] > len(self)]:
            chosen.discard(group)
            self.kept_in_train += sizes[group]
        return bytearray(EVAL if group in chosen else TRAIN for group in groups)

    def _share(self, group: int) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def _connected(self) -> array:
        """The group of each row: the smallest key of its connected component (union-find with path halving)."""
        parent = array("q", range(len(self)))

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        first: dict[int, int] = {}
        for row in range(len(self)):
            for key in self.keys(row):
                parent[root(row)] = root(first.setdefault(key, row))
        smallest: dict[int, int] = {}
        for key, row in first.items():
            smallest[root(row)] = min(key, smallest.get(root(row), key))
        return array("q", (smallest[root(row)] for row in range(len(self))))

    def leaks(self, splits: bytearray) -> list[Leak]:
        """Every text or document that rows of both splits hold, with one row of each."""
        held: dict[int, int] = {}
        for row, split in enumerate(splits):
            if split == EVAL:
                for key in self.keys(row):
                    held.setdefault(key, row)
        found: dict[int, Leak] = {}
        for row, split in enumerate(splits):
            if split == TRAIN:
                for key in self.keys(row):
                    if key in held and key not in found:
                        found[key] = Leak(key, row, held[key])
        return list(found.values())

    def drop(self, splits: bytearray, leaks: list[Leak], side: int) -> int:
        """Marks the rows of one side (TRAIN or EVAL) that hold a leaking key as DROPPED; returns their number."""
        keys = {leak.key for leak in leaks}
        gone = [row for row, split in enumerate(splits) if split == side and not keys.isdisjoint(self.keys(row))]
        for row in gone:
            splits[row] = DROPPED
        return len(gone)
