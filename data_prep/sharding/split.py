"""Assigns rows to train and eval: by document, without duplicates and without leakage.

- Works on the keys in the spool (spool.py), never on texts.
- Keys are sorted in rounds of bounded memory. Beyond that ROW_BYTES a row, and the keys of several rows. Before that
  near duplicates need near_bytes a row at most, which is more.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.sharding.spool import Part, arrow_files, facts_of
from data_prep.shards.folder import Rows
from data_prep.shards.shared_keys import shared_keys
from data_prep.texts.near_duplicates import BLOCK, NearDuplicates, block_bytes, near_bytes

TRAIN, EVAL, LEFT_OUT = 0, 1, 2
ROUND = 1 << 22  # keys sorted at once: up to 100 MB
MOST_ROUNDS = 32  # each reads all keys again: beyond 10^8 rows a round grows, by less than 2 bytes a row
ROW_BYTES, FIXED_BYTES = 96, 200 << 20  # measured by tests/soak/ray_decision.py, with two keys a row


def memory_for(rows: int, similarity: float | None) -> int:
    """Returns the bytes that the decision on `rows` rows takes, about. similarity: of near duplicates, or None; with
    it the bytes if every row has a near duplicate, otherwise it takes less."""
    if similarity is None:
        return FIXED_BYTES + rows * ROW_BYTES
    block = min(1.0, rows / BLOCK) * block_bytes(similarity)
    return FIXED_BYTES + int(block) + rows * max(ROW_BYTES, near_bytes(similarity))


def _rounds(keys: int) -> int:
    """Returns the number of rounds in which these keys are sorted."""
    return min(-(-keys // ROUND), MOST_ROUNDS)


class Leaks(NamedTuple):
    """The k texts and documents that rows of both splits hold, in the order of train_rows."""

    keys: Any  # (k,) numbers in SplitPlan.shared
    train_rows: Any  # (k,) first row of train that holds it
    eval_rows: Any  # (k,) first row of eval that holds it


class SplitPlan:
    """The n rows of a spool: the kept ones, the keys that they share, and the rule that assigns them to splits.

    by_field: groups are the values of a metadata field. Otherwise a group is the rows that share a document, a positive
    text or a query text, directly or through other rows. fraction: expected share of groups in eval, 0..1. Rows that
    are left out before `assign` have no part in groups and shared keys.
    """

    def __init__(self, folder: Path, parts: list[Part], by_field: bool, fraction: float, seed: int):
        self.folder, self.parts, self.filled = folder, parts, [part for part in parts if part.rows]
        self.by_field, self.fraction, self.seed = by_field, fraction, seed
        self.rows = sum(part.rows for part in parts)
        self.twins = self._exact_duplicates()
        self.kept = np.ones(self.rows, bool)  # (n,)
        self.kept[self.twins[0]] = False
        self.duplicates = len(self.twins[0])  # exact ones, removed; their keys count for the row that stayed
        self.kept_in_train = 0  # rows of a group too large for eval; set by `assign`
        self.groups = self.largest_group = 0  # number of groups, rows of the largest one; set by `assign`

    def _columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yields for each part its first row and these arrays."""
        start = 0
        for part in self.filled:
            with facts_of(self.folder, part.number) as facts:
                yield start, *(facts[name] for name in names)
            start += part.rows

    def _exact_duplicates(self) -> tuple[Any, Any]:
        """Returns the duplicate rows, ascending, and for each the first equal row."""
        pairs = [np.empty((2, 0), np.int64)]
        rounds = _rounds(self.rows)
        for number in range(rounds):
            rows, same = [], []
            for start, hashes in self._columns("same"):
                chosen = np.flatnonzero(hashes[:, 0] % np.uint64(rounds) == number)
                rows.append(start + chosen)
                same.append(hashes[chosen])
            rows, same = np.concatenate(rows), np.concatenate(same)
            order = np.lexsort((same[:, 1], same[:, 0]))  # stable: equal ones stay in the order of rows
            again = np.zeros(len(order), bool)
            again[1:] = (same[order[1:]] == same[order[:-1]]).all(axis=1)
            first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
            pairs.append(np.stack([rows[order[again]], rows[order[first[again]]]]))
        later, earlier = np.concatenate(pairs, axis=1)
        order = np.argsort(later)
        return later[order], earlier[order]

    def leave_out_near(self, similarity: float) -> tuple[int, int]:
        """Leaves out near duplicates of earlier kept rows; returns their number, and that of unsure rows."""
        index, kept = NearDuplicates(similarity), np.flatnonzero(self.kept)
        for start, keys, sizes in self._columns("near_keys", "near_sizes"):
            part_kept = self.kept[start : start + len(keys)]
            index.add_signatures(keys[part_kept], sizes[part_kept])
        rows = Rows(arrow_files(self.folder, self.parts))
        near = kept[index.find(lambda numbers: rows.take(kept[numbers].tolist()))]
        self.kept[near] = False
        return len(near), index.unsure

    def leave_out_held(self, splits: Any) -> dict[str, dict[str, int]]:
        """Leaves out train rows with a held-out text; returns {set: {"query" or "document": rows}}."""
        left_out: dict[str, dict[str, int]] = {}
        for part, (start, excluded) in zip(self.filled, self._columns("excluded")):
            part_splits = splits[start : start + part.rows]
            excluded_train = (excluded > 0) & (part_splits == TRAIN)
            counts = np.bincount(excluded[excluded_train], minlength=1 + len(part.sets))[1:]
            for (name, kind), count in zip(part.sets, counts.tolist()):
                of_set = left_out.setdefault(name, {})
                of_set[kind] = of_set.get(kind, 0) + count
            part_splits[excluded_train] = LEFT_OUT
        return {name: dict(sorted(of.items())) for name, of in sorted(left_out.items())}

    @cached_property
    def shared(self) -> tuple[Any, Any]:
        """All pairs of a kept row and a key that another kept row has too: (rows, numbers of keys), (p,) int64 each."""
        pairs_by_round, keys_before = [np.empty((2, 0), np.int64)], 0
        pairs = sum(int(counts.sum()) for _, counts in self._columns("keys_of"))
        doublings = (_rounds(pairs) - 1).bit_length()  # each round takes a range of keys: their order is one
        for number in range(1 << doublings):
            rows, keys = [], []
            for start, counts, part_keys in self._columns("keys_of", "keys"):
                of_round = part_keys >> (63 - doublings) == number
                row_of = np.repeat(np.arange(start, start + len(counts)), counts)
                row_of = self._who_stays(row_of[of_round])
                rows.append(row_of[self.kept[row_of]])
                keys.append(part_keys[of_round][self.kept[row_of]])
            shared = shared_keys(np.concatenate(rows), np.concatenate(keys))
            numbers = np.repeat(np.arange(len(shared)), np.diff(shared.starts))
            pairs_by_round.append(np.stack([shared.rows, numbers + keys_before]))
            keys_before += len(shared)
        rows, numbers = np.concatenate(pairs_by_round, axis=1)
        return rows, numbers

    def _who_stays(self, rows: Any) -> Any:
        """Replaces exact duplicates by the row that stayed."""
        later, earlier = self.twins
        if not len(later):
            return rows
        index = np.minimum(later.searchsorted(rows), len(later) - 1)
        return np.where(later[index] == rows, earlier[index], rows)

    def assign(self) -> Any:
        """Returns TRAIN, EVAL or LEFT_OUT for each row, (n,) uint8.

        A group is in eval if its hash with the seed is below the fraction, for any order of rows. A group of more than
        half of all rows stays in train.
        """
        splits = np.where(self.kept, TRAIN, LEFT_OUT).astype(np.uint8)
        if not self.fraction:
            return splits
        groups = np.concatenate([group for _, group in self._columns("group")]) if self.by_field else self._connected()
        groups, group_of, sizes = np.unique(groups[self.kept], return_inverse=True, return_counts=True)
        chosen = np.zeros(len(groups), bool)
        for first in range(0, len(groups), ROUND):  # Python's integers are large
            some = groups[first : first + ROUND].tolist()
            chosen[first : first + ROUND] = [self._share(group) < self.fraction for group in some]
        self.groups, self.largest_group = len(groups), int(sizes.max(initial=0))
        large = chosen & (2 * sizes > len(group_of))
        self.kept_in_train = int(sizes[large].sum())
        splits[self.kept] = np.where((chosen & ~large)[group_of], EVAL, TRAIN)
        return splits

    def _share(self, group: int) -> float:
        digest = hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def _connected(self) -> Any:
        """Returns the group of each row, (n,) int64: the smallest key of its connected component."""
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

    def most_shared(self) -> Any:
        """Returns the rows, ascending, of the text or document that most kept rows share; empty if none is shared."""
        rows, numbers = self.shared
        return np.sort(rows[numbers == np.bincount(numbers).argmax()]) if len(rows) else rows

    def leaks(self, splits: Any) -> Leaks:
        """Finds the texts and documents that rows of both splits hold."""
        rows, numbers = self.shared
        keys = int(numbers.max()) + 1 if len(numbers) else 0
        first = np.full((2, keys), self.rows)
        for side in (TRAIN, EVAL):
            of_side = splits[rows] == side
            np.minimum.at(first[side], numbers[of_side], rows[of_side])
        leaking = np.flatnonzero((first < self.rows).all(axis=0))
        leaking = leaking[np.lexsort(first[::-1, leaking])]
        return Leaks(leaking, *first[:, leaking])

    def drop(self, splits: Any, leaks: Leaks, side: int) -> int:
        """Leaves out the rows of one split (TRAIN or EVAL) with a leaking key; returns their number."""
        rows, numbers = self.shared
        leaking = np.unique(rows[np.isin(numbers, leaks.keys) & (splits[rows] == side)])
        splits[leaking] = LEFT_OUT
        return len(leaking)

    def train_pairs(self, splits: Any) -> tuple[Any, Any]:
        """Returns the pairs of `shared` in train: (index among the train rows, number of key), int64 each."""
        rows, numbers = self.shared
        is_train = splits == TRAIN
        in_train = is_train[rows]
        return (is_train.cumsum() - 1)[rows[in_train]], numbers[in_train]
