"""Lengths of texts in characters and words: percentiles and a histogram, four bytes per text and unit."""

from array import array
from typing import Any

from data_prep.records import Record

FIELDS = ("query", "positive", "negative")
UNITS = ("characters", "words")
PERCENTILES = (50, 90, 99)


class Lengths:
    """Gathers the lengths of the texts of records."""

    def __init__(self):
        self.seen = {field: {unit: array("I") for unit in UNITS} for field in FIELDS}

    def add(self, record: Record) -> None:
        texts = (("query", [record.query]), ("positive", record.positives), ("negative", record.negatives))
        for field, some in texts:
            for text in some:
                self.seen[field]["characters"].append(len(text))
                self.seen[field]["words"].append(len(text.split()))

    def summary(self, histogram: bool = False) -> dict[str, Any]:
        """{field: {"texts": n, unit: {"p50", "p90", "p99", "max", "histogram"?: {upper bound (2^n): texts}}}};
        fields without a text are left out. A percentile is the smallest length that this share does not exceed."""
        found: dict[str, Any] = {}
        for field, units in self.seen.items():
            count = len(units["words"])
            if not count:
                continue
            found[field] = {"texts": count}
            for unit, values in units.items():
                ordered = sorted(values)
                found[field][unit] = {f"p{p}": ordered[-(-count * p // 100) - 1] for p in PERCENTILES}
                found[field][unit]["max"] = ordered[-1]
                if histogram:
                    found[field][unit]["histogram"] = _by_powers_of_two(ordered)
        return found


def _by_powers_of_two(lengths: list[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for length in lengths:
        bound = str(1 << max(length - 1, 0).bit_length())
        counts[bound] = counts.get(bound, 0) + 1
    return counts
