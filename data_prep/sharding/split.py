"""Which row goes to train and which to eval: by document, without duplicates and without leakage.

Works on the keys that the spool holds on disk (spool.py), never on texts. They are sorted in as many rounds as keep a
round's memory bounded; beyond that about 40 bytes a row are held, and those keys that more than one row has.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.sharding.spool import Part, arrow_files, facts_of
from data_prep.shards.folder import Rows
from data_prep.shards.shared_keys import shared_keys
from data_prep.texts.near_duplicates import NearDuplicates

TRAIN, EVAL, LEFT_OUT = 0, 1, 2
ROUND = 1 << 22  # keys that are sorted at once: 100 MB and less


class Leaks(NamedTuple):
    """The texts and documents that rows of both splits hold, in the order of train_rows; (k,) arrays.

    keys: their numbers in SplitPlan.shared. train_rows, eval_rows: the first row of each split that holds it.
    """

    keys: Any
    train_rows: Any
    eval_rows: Any


class SplitPlan:
    """The rows of a spool: which are kept, what they share, and the rule that assigns them to splits.

    by_field: group by the value of a metadata field alone; otherwise a group is the rows that share a document, a
    positive text or a query text, directly or through other rows. fraction: expected share of groups in eval, 0..1.

    kept: (n,) bool. duplicates: the number of exact duplicates that were removed; what they hold counts as held by the
    row that stayed. kept_in_train: rows of a group too large for eval, known after `assign`. What is left out before
    `assign` has no part in groups and shared keys.
    """

    def __init__(self, folder: Path, parts: list[Part], by_field: bool, fraction: float, seed: int):
        import numpy as np

        self.folder, self.parts = folder, parts
        self.by_field, self.fraction, self.seed = by_field, fraction, seed
        self.rows = sum(part.rows for part in parts)
        self.twins = self._exact_duplicates()
        self.kept = np.ones(self.rows, bool)
        self.kept[self.twins[0]] = False
        self.duplicates = len(self.twins[0])
        self.kept_in_train = 0

    def _columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Of each part: its first row, and these arrays."""
        start = 0
        for part in self._filled():
            with facts_of(self.folder, part.number) as facts:
                yield start, *(facts[name] for name in names)
            start += part.rows

    def _filled(self) -> list[Part]:
        return [part for part in self.parts if part.rows]

    def _exact_duplicates(self) -> tuple[Any, Any]:
        """(rows, ascending; the first row that is the same as each)."""
        import numpy as np

        found = [np.empty((2, 0), np.int64)]
        rounds = -(-self.rows // ROUND)
        for number in range(rounds):
            rows, same = [], []
            for start, of_part in self._columns("same"):
                chosen = np.flatnonzero(of_part[:, 0] % np.uint64(rounds) == number)
                rows.append(start + chosen)
                same.append(of_part[chosen])
            rows, same = np.concatenate(rows), np.concatenate(same)
            order = np.lexsort((same[:, 1], same[:, 0]))  # stable: equal ones stay in the order of rows
            again = np.zeros(len(order), bool)
            again[1:] = (same[order[1:]] == same[order[:-1]]).all(axis=1)
            first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
            found.append(np.stack([rows[order[again]], rows[order[first[again]]]]))
        later, earlier = np.concatenate(found, axis=1)
        order = np.argsort(later)
        return later[order], earlier[order]

    def leave_out_near(self, similarity: float) -> tuple[int, int]:
        """Keeps no near duplicate of an earlier row that is kept; returns how many there were, and how many rows may be
        more of them (see near_duplicates.py)."""
        import numpy as np

        index, kept = NearDuplicates(similarity), np.flatnonzero(self.kept)
        for start, keys, sizes in self._columns("near_keys", "near_sizes"):
            own = self.kept[start : start + len(keys)]
            index.add_signatures(keys[own], sizes[own])
        rows = Rows(arrow_files(self.folder, self.parts))
        near = kept[index.find(lambda numbers: rows.take(kept[numbers].tolist()))]
        self.kept[near] = False
        return len(near), index.unsure

    def leave_out_held(self, splits: Any) -> dict[str, dict[str, int]]:
        """Leaves the train rows out that hold a text of an evaluation set; {set: {"query" or "document": rows}}."""
        import numpy as np

        found: dict[str, dict[str, int]] = {}
        for part, (start, excluded) in zip(self._filled(), self._columns("excluded")):
            own = splits[start : start + part.rows]
            out = (excluded > 0) & (own == TRAIN)
            for number, count in enumerate(np.bincount(excluded[out], minlength=1 + len(part.sets))[1:].tolist()):
                name, kind = part.sets[number]
                of_set = found.setdefault(name, {})
                of_set[kind] = of_set.get(kind, 0) + count
            own[out] = LEFT_OUT
        return {name: dict(sorted(of.items())) for name, of in sorted(found.items())}

    @cached_property
    def shared(self) -> tuple[Any, Any]:
        """(rows, numbers), (p,) int64 each: all pairs of a kept row and a key that another kept row has too."""
        import numpy as np

        found, keys_before = [np.empty((2, 0), np.int64)], 0
        pairs = sum(int(counts.sum()) for _, counts in self._columns("keys_of"))
        doublings = (-(-pairs // ROUND) - 1).bit_length()  # each round takes a range of keys: their order is one
        for number in range(1 << doublings):
            rows, keys = [], []
            for start, counts, of_part in self._columns("keys_of", "keys"):
                row_of = np.repeat(np.arange(start, start + len(counts)), counts)
                row_of = self._who_stays(row_of)
                chosen = (of_part >> (63 - doublings) == number) & self.kept[row_of]
                rows.append(row_of[chosen])
                keys.append(of_part[chosen])
            shared = shared_keys(np.concatenate(rows), np.concatenate(keys))
            numbers = np.repeat(np.arange(len(shared)), np.diff(shared.starts))
            found.append(np.stack([shared.rows, numbers + keys_before]))
            keys_before += len(shared)
        rows, numbers = np.concatenate(found, axis=1)
        return rows, numbers

    def _who_stays(self, rows: Any) -> Any:
        """Rows, with the row that stayed in the place of an exact duplicate."""
        import numpy as np

        later, earlier = self.twins
        if not len(later):
            return rows
        place = np.minimum(later.searchsorted(rows), len(later) - 1)
        return np.where(later[place] == rows, earlier[place], rows)

    def assign(self) -> Any:
        """(n,) uint8: TRAIN, EVAL or LEFT_OUT for each row: a group is in eval when its hash with the seed is below the
        fraction, whatever the order of rows. A group of more than half of all rows stays in train."""
        import numpy as np

        splits = np.where(self.kept, TRAIN, LEFT_OUT).astype(np.uint8)
        if not self.fraction:
            return splits
        groups = np.concatenate([group for _, group in self._columns("group")]) if self.by_field else self._connected()
        groups, group_of, sizes = np.unique(groups[self.kept], return_inverse=True, return_counts=True)
        chosen = np.fromiter((self._share(group) < self.fraction for group in groups.tolist()), bool, len(groups))
        large = chosen & (2 * sizes > len(group_of))
        self.kept_in_train = int(sizes[large].sum())
        splits[self.kept] = np.where((chosen & ~large)[group_of], EVAL, TRAIN)
        return splits

    def _share(self, group: int) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def _connected(self) -> Any:
        """(n,) int64, the group of each row: the smallest key of its connected component."""
        import numpy as np
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        smallest = np.empty(self.rows, np.int64)
        for start, counts, keys in self._columns("keys_of", "keys"):
            smallest[start : start + len(counts)] = np.minimum.reduceat(keys, counts.cumsum() - counts)
        np.minimum.at(smallest, self.twins[1], smallest[self.twins[0]])
        rows, numbers = self.shared
        if len(rows):
            rows, row_of = np.unique(rows, return_inverse=True)
            nodes = len(rows) + int(numbers.max()) + 1
            edges = coo_array((np.ones(len(numbers), bool), (row_of, len(rows) + numbers)), shape=(nodes, nodes))
            component = connected_components(edges, directed=False)[1][: len(rows)]
            of_component = np.full(component.max() + 1, np.iinfo(np.int64).max)
            np.minimum.at(of_component, component, smallest[rows])
            smallest[rows] = of_component[component]
        return smallest

    def leaks(self, splits: Any) -> Leaks:
        """Every text or document that rows of both splits hold."""
        import numpy as np

        rows, numbers = self.shared
        keys = int(numbers.max()) + 1 if len(numbers) else 0
        first = np.full((2, keys), self.rows)
        for side in (TRAIN, EVAL):
            of_side = splits[rows] == side
            np.minimum.at(first[side], numbers[of_side], rows[of_side])
        found = np.flatnonzero((first < self.rows).all(axis=0))
        found = found[np.lexsort(first[::-1, found])]
        return Leaks(found, *first[:, found])

    def drop(self, splits: Any, leaks: Leaks, side: int) -> int:
        """Leaves out the rows of one side (TRAIN or EVAL) that hold a leaking key; returns their number."""
        import numpy as np

        rows, numbers = self.shared
        gone = np.unique(rows[np.isin(numbers, leaks.keys) & (splits[rows] == side)])
        splits[gone] = LEFT_OUT
        return len(gone)

    def train_pairs(self, splits: Any) -> tuple[Any, Any]:
        """(row among the train rows, number of a key that it shares); int64 arrays of one length."""
        rows, numbers = self.shared
        is_train = splits == TRAIN
        held = is_train[rows]
        return (is_train.cumsum() - 1)[rows[held]], numbers[held]
