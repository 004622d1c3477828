"""Balanced sampling: equally many rows of every value of a metadata field, independent of their order."""

import hashlib
from array import array
from collections import Counter

from data_prep.reading.row_problems import Problems, field_value
from data_prep.records import Record


class Balance:
    """Draws the rows to keep. Holds 24 bytes a row, no text."""

    def __init__(self, field: str, per_value: int | None, seed: int):
        """field: a metadata field. per_value: rows of each value at most; None: as many as the rarest value has."""
        self.field, self.per_value, self.seed = field, per_value, seed
        self.counts: Counter[str | int | float] = Counter()
        self._number: dict[str | int | float, int] = {}  # value -> its index, by first appearance
        self._values, self._ranks = array("q"), array("q")

    def add(self, record: Record, problems: Problems) -> None:
        """Adds the next record; one without the field is a problem."""
        value = field_value(record, self.field, "--balance", problems)
        if value is None:
            return
        self.counts[value] += 1
        self._values.append(self._number.setdefault(value, len(self._number)))
        named = repr((self.seed, record.id, record.query, record.positives)).encode()
        self._ranks.append(int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big") >> 1)

    @property
    def quota(self) -> int:
        """Maximum of rows of each value."""
        return self.per_value or min(self.counts.values())

    def kept(self) -> bytearray:
        """Returns 1 for each row to keep: the `quota` rows of the lowest hash of every value, which is a fair draw."""
        kept = bytearray(len(self._values))
        left = [self.quota] * len(self._number)
        for row in sorted(range(len(self._values)), key=self._ranks.__getitem__):
            if left[self._values[row]]:
                left[self._values[row]] -= 1
                kept[row] = 1
        return kept

    def summary(self) -> list[str]:
        """Returns lines on the rows that were left out and the values with fewer rows."""
        quota = self.quota
        out = {value: count - quota for value, count in self.counts.most_common() if count > quota}
        few = {value: count for value, count in self.counts.items() if count < quota}
        lines = [f"--balance {self.field}: at most {quota:,} rows of each of {len(self.counts):,} values"]
        lines += [f"left out: {sum(out.values()):,} rows ({_listed(out)})"] if out else []
        lines += [f"fewer rows than that: {_listed(few)}"] if few else []
        return lines


def _listed(counts: dict[str | int | float, int], shown: int = 20) -> str:
    each = ", ".join(f"{value} {count:,}" for value, count in list(counts.items())[:shown])
    return each + (f" and {len(counts) - shown:,} other values" if len(counts) > shown else "")
