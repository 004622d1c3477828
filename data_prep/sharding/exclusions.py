"""Rows that `shard` leaves out by option: near duplicates of earlier rows, and train rows with a held-out text.

The facts that decide on a row are gathered while it is read, in the process that reads it.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.quality.decontaminate import Held, HeldOut, held_out
from data_prep.records import Record, text_key
from data_prep.texts.near_duplicates import signatures


class Exclusions(NamedTuple):
    """The options of one run of `shard`."""

    similarity: float | None = None  # least similarity of near duplicates; None: near duplicates stay
    held: Path | None = None  # the held-out texts, a file of `write_held`


def write_held(paths: list[Path], similarity: float | None, spool: Path) -> Path | None:
    """Writes the held-out texts to a file for the processes that read rows; None without sets. Raises like held_out."""
    if not paths:
        return None
    texts = list(held_out(paths).keys.values())
    content = json.dumps([similarity, texts])
    # named by content, because _read_held caches by name
    path = spool / f"held-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    path.write_text(content, encoding="utf-8")
    return path


@lru_cache(maxsize=1)
def _read_held(path: Path) -> HeldOut:
    similarity, texts = json.loads(path.read_text(encoding="utf-8"))
    held_out_texts = HeldOut(similarity)
    held_out_texts.keys = {text_key(text): Held(text, kind, name) for text, kind, name in texts}
    return held_out_texts


class Marks:
    """The facts that decide on the rows of a part.

    arrays(): near_keys (n, bands) uint32 and near_sizes (n, 2) int32, see near_duplicates.signatures; excluded (n,)
    int32, 0 or the number, from 1, of the entry of `sets` whose text the row holds. unsure: see HeldOut.
    """

    def __init__(self, exclusions: Exclusions):
        self.exclusions = exclusions
        self.sets: dict[tuple[str, str], int] = {}  # (evaluation set, "query" or "document") -> number from 0
        self.unsure = 0
        self._keys: list[Any] = []
        self._sizes: list[Any] = []
        self._excluded: list[int] = []

    def add(self, records: list[Record]) -> None:
        """Adds the next rows."""
        if self.exclusions.similarity is not None:
            keys, sizes = signatures(records, self.exclusions.similarity)
            self._keys.append(keys)
            self._sizes.append(sizes)
        if self.exclusions.held:
            held_out_texts = _read_held(self.exclusions.held)
            before = held_out_texts.unsure
            for match in held_out_texts.matches(records):
                source = match and (match.held.name, match.held.kind)
                self._excluded.append(1 + self.sets.setdefault(source, len(self.sets)) if source else 0)
            self.unsure += held_out_texts.unsure - before

    def arrays(self) -> dict[str, Any]:
        arrays = {}
        if self._keys:
            arrays = {"near_keys": np.concatenate(self._keys), "near_sizes": np.concatenate(self._sizes)}
        if self.exclusions.held:
            arrays["excluded"] = np.array(self._excluded, np.int32)
        return arrays
