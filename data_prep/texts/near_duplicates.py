"""Near duplicates: texts whose sets of character shingles are almost the same (Broder 1997), found by MinHash LSH.

- A shingle is a run of SHINGLE characters of the normalised text (records.normalise), so that scripts without spaces
  work too. The similarity of two texts is the Jaccard similarity |A & B| / |A | B| of their sets of shingles.
- rensa makes signatures; texts that agree in a band of them are proposed as a pair (Indyk and Motwani 1998).
- Each proposed pair is verified on the texts: no pair below the stated similarity is ever returned. Of the pairs at
  exactly that similarity at most 2 % are expected to be missed, of closer pairs fewer.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_prep.records import Record, is_variant, normalise
from data_prep.texts.splitmix import splitmix

SHINGLE = 4  # characters
SIMILARITY = 0.85
LOWEST = 0.7
MISSED = 0.02  # expected share of pairs at exactly the stated similarity that no band proposes
CANDIDATES = 64  # partners of a row that are compared, those with most common bands first
BATCH_ROWS, BATCH_CHARACTERS = 1000, 1 << 20  # hashed in one call
BLOCK = 4096  # rows whose candidates are in memory at once, at most
ALONE = 0xFFFFFFFF  # place of a row that shares no key in a band


def check_similarity(similarity: float, where: str) -> list[str]:
    """Returns the problem of a similarity out of range, if any; `where` names the option."""
    if LOWEST <= similarity <= 1:
        return []
    return [f"{where} {similarity:g}: a Jaccard similarity of {LOWEST} to 1"]


def shingles(text: str) -> set[str]:
    """Returns the shingles of a normalised text; a shorter text is its only shingle."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def shingles_of(texts: list[str]) -> set[str]:
    """Returns the shingles of all texts of one side of a row."""
    return set().union(*(shingles(normalise(text)) for text in texts))


def jaccard(one: set[str], other: set[str]) -> float:
    """Returns |A & B| / |A | B|; neither is empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


class Bands:
    """Band keys of sets of texts. Sets at the stated similarity share a key in at least one band, except for MISSED.

    sides: sets of texts of a row that must all be similar; 2 for query and positives.
    """

    def __init__(self, similarity: float, sides: int):
        self.rows = 6 if similarity >= 0.8 else 4  # signature values per side and band; more are more selective
        agree = similarity ** (self.rows * sides)
        self.count = 1 if agree == 1 else math.ceil(math.log(MISSED) / math.log1p(-agree))
        self.sides = sides

    def keys(self, sides: list[list[list[str]]]) -> tuple[Any, Any]:
        """Returns (n, count) uint32 keys, (n, sides) int32 numbers of shingles. sides[s][row]: normalised texts."""
        from rensa import RMinHash

        assert len(sides) == self.sides
        keys = np.zeros((len(sides[0]), self.count), np.uint64)
        sizes = np.empty((len(sides[0]), self.sides), np.int32)
        for side, rows in enumerate(sides):
            hashes, ends = _hashes(rows)
            sizes[:, side] = _distinct(hashes, ends)
            offsets = np.concatenate(([0], ends)).astype(np.uint64)
            signatures = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, self.count * self.rows, side)
            values = np.array(signatures.to_rows(), np.uint64).reshape(len(rows), self.count, self.rows)
            for number in range(self.rows):
                keys = splitmix(keys ^ values[:, :, number])
        return (keys >> np.uint64(32)).astype(np.uint32), sizes


def _hashes(rows: list[list[str]]) -> tuple[Any, Any]:
    """Returns 64-bit hashes of the shingles of all rows, uint64, one row after the other, and the end of each row."""
    # a text shorter than a shingle is padded; hashes only propose pairs, so a text that ends in NUL does no harm
    texts = [text.ljust(SHINGLE, "\0") for row in rows for text in row]
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points) - SHINGLE + 1, np.uint64)
    for offset in range(SHINGLE):
        hashes *= np.uint64(0xD1342543DE82EF95)
        hashes += points[offset : offset + len(hashes)]
    hashes = splitmix(hashes)
    lengths = np.array([len(text) for text in texts])
    starts = lengths.cumsum() - lengths
    within = np.ones(len(hashes), bool)  # False: reaches from one text into the next
    for offset in range(1, SHINGLE):
        within[starts[1:] - offset] = False
    per_row = np.array([sum(max(len(text), SHINGLE) - SHINGLE + 1 for text in row) for row in rows])
    return hashes[within], per_row.cumsum()


def _distinct(hashes: Any, ends: Any) -> Any:
    """Counts the distinct values of each row, (n,); sorts the rows in place."""
    starts = np.concatenate(([0], ends[:-1]))
    for start, end in zip(starts.tolist(), ends.tolist()):
        hashes[start:end].sort()
    first = np.concatenate(([True], hashes[1:] != hashes[:-1]))
    first[starts] = True
    return np.add.reduceat(first, starts, dtype=np.int32)


def signatures(records: list[Record], similarity: float) -> tuple[Any, Any]:
    """Returns band keys, (n, bands) uint32, and numbers of distinct shingles of query and positives, (n, 2) int32."""
    queries = [[normalise(record.query)] for record in records]
    positives = [[normalise(text) for text in record.positives] for record in records]
    keys, sizes = Bands(similarity, sides=2).keys([queries, positives])
    apart = [-2.0 - row if is_variant(record) else _grade(record) for row, record in enumerate(records)]
    return keys ^ splitmix(np.array(apart).view(np.uint64)).astype(np.uint32)[:, None], sizes


def signatures_of_any(records: list[Record], similarity: float) -> tuple[Any, Any]:
    """Returns what `signatures` does, with memory bounded however long the texts are."""
    index = NearDuplicates(similarity)
    for record in records:
        index.add(record)
    return index.signatures()


def near_bytes(similarity: float) -> int:
    """Returns the bytes a row that `find` takes at most, with those of its caller for the row."""
    return 10 * Bands(similarity, sides=2).count + 60  # measured by tests/soak/ray_decision.py


def block_bytes(similarity: float) -> int:
    """Returns the bytes that `find` takes at most for the candidates of a block: texts made of one template share all
    bands with CANDIDATES others."""
    return 64 * BLOCK * CANDIDATES * Bands(similarity, sides=2).count


class NearDuplicates:
    """Finds rows that are near duplicates of an earlier row that stays. Deterministic for rows in the same order.

    Rows are near duplicates if their queries, and all their positives together, reach the similarity, and their `score`
    is equal. Variants (augment.py) are alike on purpose and always stay.

    Memory: 4 bytes per row and band, and 8 more: 112 bytes a row at 0.85, 228 at 0.8, 56 at 0.9; in `find` up to
    `near_bytes`, if every row shares every band. No text is in memory. unsure, set by `find`: rows that stayed although
    they had more than CANDIDATES partners (texts made of one template), so that a near duplicate may have been missed.
    """

    def __init__(self, similarity: float = SIMILARITY):
        assert LOWEST <= similarity <= 1
        self.similarity = similarity
        self.unsure = 0
        self._waiting: list[Record] = []
        self._characters = 0
        self._keys: list[Any] = []  # (n, bands) uint32 of each batch
        self._sizes: list[Any] = []  # (n, 2) int32

    def add(self, record: Record) -> None:
        """Adds the next row."""
        self._waiting.append(record)
        self._characters += len(record.query) + sum(map(len, record.positives))
        if len(self._waiting) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._hash()

    def add_signatures(self, keys: Any, sizes: Any) -> None:
        """Adds the next rows by their `signatures`, perhaps of another process."""
        self._hash()
        self._keys.append(keys.copy())  # `find` writes into it
        self._sizes.append(sizes)

    def signatures(self) -> tuple[Any, Any]:
        """Returns the `signatures` of all added rows, of which there is one or more."""
        self._hash()
        return np.concatenate(self._keys), np.concatenate(self._sizes)

    def _hash(self) -> None:
        if self._waiting:
            records, self._waiting, self._characters = self._waiting, [], 0
            self.add_signatures(*signatures(records, self.similarity))

    def find(self, fetch: Callable[[list[int]], list[Record]]) -> Any:
        """Returns the rows to leave out, (n,) bool for n added rows.

        fetch: returns records by row number, from 0 in the order of `add`, like Rows.take; called only for rows that
        share a band.
        """
        self._hash()
        if not self._sizes:
            return np.zeros(0, bool)
        sizes = np.concatenate(self._sizes)
        removed = np.zeros(len(sizes), bool)
        keys, self._keys, self._sizes = self._keys, [], []
        buckets = _Buckets(keys)
        for rows, partners, cut in buckets.candidates(sizes, self.similarity):
            self._verify(rows, partners, fetch, removed)
            self.unsure += int((~removed[cut]).sum())
        return removed

    def _verify(self, rows: Any, partners: Any, fetch: Callable[[list[int]], list[Record]], removed: Any) -> None:
        """Compares pairs and marks duplicates in `removed`. rows: ascending; partners: an earlier row for each."""
        for start in range(0, len(rows), CANDIDATES * 16):
            part = slice(start, start + CANDIDATES * 16)
            needed = sorted({*rows[part].tolist(), *partners[part].tolist()})
            records = dict(zip(needed, fetch(needed)))
            sets: dict[int, tuple[set[str], ...]] = {}
            for row, partner in zip(rows[part].tolist(), partners[part].tolist()):
                if removed[row] or removed[partner]:
                    continue
                for number in (row, partner):
                    if number not in sets:
                        sets[number] = tuple(map(shingles_of, ([records[number].query], records[number].positives)))
                alike = all(jaccard(*pair) >= self.similarity for pair in zip(sets[row], sets[partner]))
                both = records[row], records[partner]
                removed[row] = alike and _grade(both[0]) == _grade(both[1]) and not any(map(is_variant, both))


def _grade(record: Record) -> float:
    """Returns the record's score, or -1. Rows of different scores contradict each other and are no duplicates."""
    return -1.0 if record.score is None else record.score


class _Buckets:
    """Rows by band and key, without rows that share no key. Memory: 4 bytes per row and band in the place of the keys,
    and up to 6 more where rows share one."""

    def __init__(self, keys: list[Any]):
        """keys: (n, bands) uint32 of one batch of rows after the other; overwritten by the rows' places."""
        self.places = keys  # of each row and band: its place among the members, or ALONE
        self.bands: list[tuple[Any, Any]] = []  # per band: members, bucket after bucket; place of each bucket's first
        for band in range(keys[0].shape[1]):
            column = np.concatenate([batch[:, band] for batch in keys])
            order = np.argsort(column, kind="stable").astype(np.uint32)
            column = column[order]
            same = column[1:] == column[:-1]
            shared = np.concatenate((same, [False])) | np.concatenate(([False], same))
            first = np.concatenate(([True], ~same))[shared]
            members = order[shared]
            column[:] = ALONE
            column[members] = np.arange(len(members), dtype=np.uint32)
            start = 0
            for batch in keys:
                batch[:, band] = column[start : start + len(batch)]
                start += len(batch)
            self.bands.append((members, np.flatnonzero(first).astype(np.uint32)))

    def candidates(self, sizes: Any, similarity: float) -> Iterator[tuple[Any, Any, Any]]:
        """Yields (rows, partners, cut) by ascending rows: pairs to compare, and the rows that had more than CANDIDATES.

        Pairs with most common bands come first. sizes: see Bands.keys; a pair whose sizes differ by more than the
        similarity allows is skipped.
        """
        for block in self._blocks():
            pairs, cut = [], []
            for (members, starts), places in zip(self.bands, block.T):
                places = places[places != ALONE]
                start = starts[starts.searchsorted(places, "right") - 1]
                count = (places - start).astype(np.int64)  # earlier members of the bucket
                cut.append(members[places[count > CANDIDATES]])
                count = np.minimum(count, CANDIDATES)
                number = np.repeat(np.arange(len(places)), count)
                within = np.arange(len(number)) - (count.cumsum() - count)[number]
                row, partner = members[places][number], members[start[number] + within]
                pairs.append(row.astype(np.uint64) << np.uint64(32) | partner)
            pairs, common = np.unique(np.concatenate(pairs), return_counts=True)
            row, partner = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
            fits = np.minimum(sizes[row], sizes[partner]) >= similarity * np.maximum(sizes[row], sizes[partner])
            row, partner, common = (each[fits.all(axis=1)] for each in (row, partner, common))
            order = np.lexsort((partner, -common, row))
            row, partner = row[order], partner[order]
            rank = np.arange(len(row)) - row.searchsorted(row)
            cut.append(row[rank >= CANDIDATES])
            kept = rank < CANDIDATES
            yield row[kept], partner[kept], np.unique(np.concatenate(cut)).astype(np.int64)

    def _blocks(self) -> Iterator[Any]:
        """Yields the places of BLOCK rows or fewer, in order, (m, bands). Small batches are joined."""
        waiting, count = [], 0
        for batch in self.places:
            for first in range(0, len(batch), BLOCK):
                piece = batch[first : first + BLOCK]
                if count + len(piece) > BLOCK:
                    yield np.concatenate(waiting)
                    waiting, count = [], 0
                waiting.append(piece)
                count += len(piece)
        if waiting:
            yield np.concatenate(waiting)
