"""Lengths of texts in characters and words: percentiles and a histogram. Memory grows with distinct lengths only."""

from collections import Counter
from typing import Any

import numpy as np

from data_prep.records import Record, count_words

FIELDS = ("query", "positive", "negative")
UNITS = ("characters", "words")
PERCENTILES = (50, 90, 99)


class Lengths:
    """Gathers the lengths of the texts of records."""

    def __init__(self):
        self.seen: dict[str, dict[str, Counter[int]]] = {field: {unit: Counter() for unit in UNITS} for field in FIELDS}

    def add(self, record: Record) -> None:
        texts = (("query", [record.query]), ("positive", record.positives), ("negative", record.negatives))
        for field, texts_of_field in texts:
            for text in texts_of_field:
                self.seen[field]["characters"][len(text)] += 1
                self.seen[field]["words"][count_words(text)] += 1

    def add_all(self, field: str, characters: Any, words: Any) -> None:
        """Adds the lengths of many texts of one field, integer numpy arrays."""
        for unit, values in (("characters", characters), ("words", words)):
            lengths, counts = np.unique(values, return_counts=True)
            self.seen[field][unit].update(dict(zip(lengths.tolist(), counts.tolist())))

    def merge(self, other: "Lengths") -> None:
        for field, units in other.seen.items():
            for unit, counts in units.items():
                self.seen[field][unit].update(counts)

    def summary(self) -> dict[str, Any]:
        """Returns {field: {"texts": n, unit: {"p50", "p90", "p99", "max", "histogram": {upper bound (2^n): texts}}}}.

        Fields without a text are missing. A percentile is the smallest length that this share does not exceed.
        """
        summary: dict[str, Any] = {}
        for field, units in self.seen.items():
            count = units["words"].total()
            if not count:
                continue
            summary[field] = {"texts": count}
            for unit, counts in units.items():
                ordered = sorted(counts.items())
                summary[field][unit] = {f"p{p}": _at(ordered, -(-count * p // 100)) for p in PERCENTILES}
                summary[field][unit]["max"] = ordered[-1][0]
                summary[field][unit]["histogram"] = by_powers_of_two(ordered)
        return summary


def _at(ordered: list[tuple[int, int]], rank: int) -> int:
    """Returns the length at a rank, from 1, among all texts from shortest to longest. ordered: (length, count)."""
    for length, count in ordered:
        rank -= count
        if rank <= 0:
            return length
    raise AssertionError("a rank beyond the last text")


def by_powers_of_two(ordered: list[tuple[int, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for length, count in ordered:
        bound = str(1 << max(length - 1, 0).bit_length())
        counts[bound] = counts.get(bound, 0) + count
    return counts
