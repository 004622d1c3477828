"""Balanced sampling: as many rows of every value of a metadata field, the same rows whatever their order."""

import hashlib
from array import array
from collections import Counter

from data_prep.reading.row_problems import Problems, field_value
from data_prep.records import Record


class Balance:
    """Which rows to keep. field: a metadata field. per_value: rows of each value at most (None: as many as the rarest
    value has). seed: of the draw. Keeps 24 bytes a row, no text."""

    def __init__(self, field: str, per_value: int | None, seed: int):
        self.field, self.per_value, self.seed = field, per_value, seed
        self.counts: Counter[str | int | float] = Counter()
        self._number: dict[str | int | float, int] = {}  # of each value, in the order of coming
        self._values, self._ranks = array("q"), array("q")

    def add(self, record: Record, problems: Problems) -> None:
        """Takes the next record; one without the field is a problem."""
        value = field_value(record, self.field, "--balance", problems)
        if value is None:
            return
        self.counts[value] += 1
        self._values.append(self._number.setdefault(value, len(self._number)))
        named = repr((self.seed, record.id, record.query, record.positives)).encode()
        self._ranks.append(int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big") >> 1)

    @property
    def quota(self) -> int:
        """Rows of each value at most."""
        return self.per_value or min(self.counts.values())

    def kept(self) -> bytearray:
        """1 for each row that stays: of every value the `quota` rows of the lowest hash, which is a fair draw."""
        kept = bytearray(len(self._values))
        left = [self.quota] * len(self._number)
        for row in sorted(range(len(self._values)), key=self._ranks.__getitem__):
            if left[self._values[row]]:
                left[self._values[row]] -= 1
                kept[row] = 1
        return kept

    def summary(self) -> list[str]:
        """What was left out, and which values have fewer rows, in a line each."""
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
