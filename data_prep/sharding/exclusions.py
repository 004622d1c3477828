"""What decides on rows that `shard` leaves out where it is asked to: near duplicates of earlier rows, and train rows
that hold a text of an evaluation set. It is found while a row is read, in whatever process reads it."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.quality.decontaminate import Held, HeldOut, held_out
from data_prep.records import Record, text_key
from data_prep.texts.near_duplicates import signatures


class Asked(NamedTuple):
    """similarity: from which rows are near duplicates; None: they stay. held: a file of `write_held`, or None."""

    similarity: float | None = None
    held: Path | None = None


ALL_STAY = Asked()


def write_held(paths: list[Path], similarity: float | None, spool: Path) -> Path | None:
    """The texts of evaluation sets as a file for the processes that read rows; None for no set. BadInput: see
    decontaminate.held_out."""
    if not paths:
        return None
    texts = list(held_out(paths).keys.values())
    content = json.dumps([similarity, texts])
    path = spool / f"held-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"  # a name for each content: cached
    path.write_text(content, encoding="utf-8")
    return path


@lru_cache(maxsize=1)
def _read_held(path: Path) -> HeldOut:
    similarity, texts = json.loads(path.read_text(encoding="utf-8"))
    made = HeldOut(similarity)
    made.keys = {text_key(text): Held(text, kind, name) for text, kind, name in texts}
    return made


class Marks:
    """What decides on the rows of a part, in arrays: near_keys (n, bands) uint32 and near_sizes (n, 2) int32, see
    near_duplicates.signatures; excluded (n,) int32: 0, or which of `sets` the row holds a text of, counted from 1.

    sets: (evaluation set, "query" or "document" there). unsure: see HeldOut.
    """

    def __init__(self, asked: Asked):
        self.asked = asked
        self.sets: dict[tuple[str, str], int] = {}
        self.unsure = 0
        self._keys: list[Any] = []
        self._sizes: list[Any] = []
        self._excluded: list[int] = []

    def add(self, records: list[Record]) -> None:
        """Takes the next rows."""
        if self.asked.similarity is not None:
            keys, sizes = signatures(records, self.asked.similarity)
            self._keys.append(keys)
            self._sizes.append(sizes)
        if self.asked.held:
            held = _read_held(self.asked.held)
            before = held.unsure
            for match in held.matches(records):
                of = match and (match.held.name, match.held.kind)
                self._excluded.append(1 + self.sets.setdefault(of, len(self.sets)) if of else 0)
            self.unsure += held.unsure - before

    def arrays(self) -> dict[str, Any]:
        import numpy as np

        found = {}
        if self._keys:
            found = {"near_keys": np.concatenate(self._keys), "near_sizes": np.concatenate(self._sizes)}
        if self.asked.held:
            found["excluded"] = np.array(self._excluded, np.int32)
        return found
