"""A share of the train rows, by document: the smaller share of two with the same seed lies inside the larger one.

A document belongs to a share if its hash with the seed, a number in 0..1, is below it. So a row's place depends on no
other row, and rows of one document are in or out together.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from data_prep.records import id_key, text_key
from data_prep.shards.folder import Rows
from data_prep.shards.shared_keys import SourceRows, shared_keys
from data_prep.texts.splitmix import mix


def rows_of_fraction(rows: Rows, fraction: float, seed: int) -> np.ndarray:
    """Returns (rows,) bool: the row belongs to the share. Reads the ids and texts of all positives."""
    keys = np.fromiter((_document(*values) for values in rows.values("doc_ids", "positives")), np.uint64, len(rows))
    digest = hashlib.blake2b(f"fraction {seed}".encode(), digest_size=8).digest()
    # 53 bits: a float holds them exactly
    shares = (mix(mix(keys) ^ np.uint64(int.from_bytes(digest, "big"))) >> np.uint64(11)) / 2**53
    return shares < fraction


def _document(doc_ids: list[str], positives: list[str]) -> int:
    """Returns the key of a row's first document: of its id, or of its text where it has none."""
    return id_key(doc_ids[0]) if doc_ids else text_key(positives[0])


def take_fraction(sources: Sequence[SourceRows], chosen: np.ndarray) -> list[SourceRows]:
    """Returns the sources with their chosen rows only. chosen: (rows,) bool. A source may lose all its rows."""
    return [_chosen_of(source, chosen[source.rows]) for source in sources]


def _chosen_of(source: SourceRows, chosen: np.ndarray) -> SourceRows:
    shared, index = source.shared, chosen.cumsum() - 1
    keys = np.repeat(np.arange(len(shared)), np.diff(shared.starts))
    held = chosen[shared.rows]
    return SourceRows(source.name, source.rows[chosen], shared_keys(index[shared.rows[held]], keys[held]))
