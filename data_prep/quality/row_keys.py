"""64-bit keys of the texts of rows, gathered in one pass, and the repetitions among them."""

import hashlib
from array import array
from typing import Any

import numpy as np

from data_prep.records import Record, is_variant, query_key, text_key


class Keys:
    """The keys (records.text_key) of all texts of the added rows: 8 bytes each, and 8 more for the row.

    Rows are numbered from 0 in the order of `add`; methods return ascending int64 arrays of row numbers. ids: the
    record ids, by row.
    """

    def __init__(self):
        self.ids: list[str] = []
        self._row = array("Q")  # of query, positives and score together: equal rows
        self._query, self._question = array("q"), array("q")  # by text; the same for a variant and its parent
        self._positive, self._positive_row = array("q"), array("q")
        self._negative, self._negative_row = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._query)

    def add(self, record: Record) -> None:
        """Adds the next row."""
        row = len(self._query)
        query = text_key(record.query)
        positives = [text_key(text) for text in record.positives]
        same = repr((record.query if is_variant(record) else query, sorted(set(positives)), record.score)).encode()
        self._row.append(int.from_bytes(hashlib.blake2b(same, digest_size=8).digest()))
        self._query.append(query)
        self._question.append(query_key(record) if is_variant(record) else query)
        for key in positives:
            self._positive.append(key)
            self._positive_row.append(row)
        for text in record.negatives:
            self._negative.append(text_key(text))
            self._negative_row.append(row)
        self.ids.append(record.id)

    def merge(self, later: "Keys") -> None:
        """Adds the keys of later rows."""
        before = len(self)
        for name in ("_row", "_query", "_question", "_positive", "_negative"):
            getattr(self, name).extend(getattr(later, name))
        for name in ("_positive_row", "_negative_row"):
            getattr(self, name).frombytes((_numbers(getattr(later, name)) + before).tobytes())
        self.ids += later.ids

    def duplicates(self) -> Any:
        """Rows with the query, the positives and the score of an earlier row."""
        return _again(_numbers(self._row))

    def repeated_queries(self) -> Any:
        """Rows with the query of an earlier row."""
        return _again(_numbers(self._query))

    def shared_positives(self) -> Any:
        """Rows with a positive that an earlier row has."""
        keys, rows = _numbers(self._positive), _numbers(self._positive_row)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        return np.unique(rows[rows > rows[first][group]])

    def equal_texts(self) -> Any:
        """Rows whose query is one of their positives."""
        rows = _numbers(self._positive_row)
        return np.unique(rows[_numbers(self._positive) == _numbers(self._query)[rows]])

    def positives_as_negatives(self) -> Any:
        """Rows with a negative that is a positive of their query, in this row or in another one of the same query."""
        query, rows = _numbers(self._question), _numbers(self._negative_row)
        known = _pairs(query[_numbers(self._positive_row)], _numbers(self._positive))
        return np.unique(rows[np.isin(_pairs(query[rows], _numbers(self._negative)), known)])

    def holding(self, keys: Any) -> tuple[Any, Any]:
        """Rows whose query, and rows of which a positive, is one of these keys (an int64 array)."""
        positives = np.isin(_numbers(self._positive), keys)
        queries = np.flatnonzero(np.isin(_numbers(self._query), keys))
        return queries, np.unique(_numbers(self._positive_row)[positives])

    def texts(self, first: int = 0) -> Any:
        """The keys of all queries and positives from this row on, int64."""
        start = np.searchsorted(_numbers(self._positive_row), first)
        return np.concatenate((_numbers(self._query)[first:], _numbers(self._positive)[start:]))


def _numbers(values: array) -> Any:
    return np.frombuffer(values, values.typecode) if values else np.empty(0, values.typecode)


def _again(keys: Any) -> Any:
    """Returns the positions of keys that occur at an earlier position."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return np.flatnonzero(~first)


def _pairs(one: Any, other: Any) -> Any:
    """Combines pairs of keys into one 64-bit key each."""
    return (one.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ other.view(np.uint64)
