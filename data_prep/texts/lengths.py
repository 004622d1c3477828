"""Lengths of texts in characters and words: percentiles and a histogram. Memory grows with distinct lengths only."""

from collections import Counter
from typing import Any

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
        for field, some in texts:
            for text in some:
                self.seen[field]["characters"][len(text)] += 1
                self.seen[field]["words"][count_words(text)] += 1

    def add_all(self, field: str, characters: Any, words: Any) -> None:
        """Takes the lengths of many texts of one field, integer numpy arrays."""
        import numpy as np

        for unit, values in (("characters", characters), ("words", words)):
            found, counts = np.unique(values, return_counts=True)
            self.seen[field][unit].update(dict(zip(found.tolist(), counts.tolist())))

    def merge(self, other: "Lengths") -> None:
        for field, units in other.seen.items():
            for unit, counts in units.items():
                self.seen[field][unit].update(counts)

    def summary(self, histogram: bool = False) -> dict[str, Any]:
        """{field: {"texts": n, unit: {"p50", "p90", "p99", "max", "histogram"?: {upper bound (2^n): texts}}}};
        fields without a text are left out. A percentile is the smallest length that this share does not exceed."""
        found: dict[str, Any] = {}
        for field, units in self.seen.items():
            count = units["words"].total()
            if not count:
                continue
            found[field] = {"texts": count}
            for unit, counts in units.items():
                ordered = sorted(counts.items())
                found[field][unit] = {f"p{p}": _at(ordered, -(-count * p // 100)) for p in PERCENTILES}
                found[field][unit]["max"] = ordered[-1][0]
                if histogram:
                    found[field][unit]["histogram"] = by_powers_of_two(ordered)
        return found


def _at(ordered: list[tuple[int, int]], place: int) -> int:
    """The length at a place, counted from 1, among all texts from the shortest to the longest."""
    for length, count in ordered:
        place -= count
        if place <= 0:
            return length
    raise AssertionError("a place beyond the last text")


def by_powers_of_two(ordered: list[tuple[int, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for length, count in ordered:
        bound = str(1 << max(length - 1, 0).bit_length())
        counts[bound] = counts.get(bound, 0) + count
    return counts
