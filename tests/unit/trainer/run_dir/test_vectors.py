"""Vectors of an evaluation set in a run directory: read for the same texts only, and not of a large set."""

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.run_dir.vectors import MOST_BYTES, drop_vectors, is_small, read_vectors, write_vectors

RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS = (RNG.normal(size=(count, 4)).astype(np.float32) for count in (2, 3))


def a_set(last: str = "z") -> RetrievalSet:
    return RetrievalSet(
        "set", ["1", "2", "3"], ["x", "y", last], ["a", "b"], ["q", "r"], {"a": {"1": 1}, "b": {"2": 1}}
    )


def test_vectors_come_back_for_the_same_texts_only(tmp_path):
    write_vectors(tmp_path, 7, a_set(), QUERIES, DOCUMENTS)
    queries, documents = read_vectors(tmp_path, 7, a_set())
    assert np.array_equal(queries, QUERIES) and np.array_equal(documents, DOCUMENTS)
    assert read_vectors(tmp_path, 7, a_set("other")) is None and read_vectors(tmp_path, 8, a_set()) is None


def test_only_the_named_steps_stay(tmp_path):
    for step in (0, 3, 6):
        write_vectors(tmp_path, step, a_set(), QUERIES, DOCUMENTS)
    drop_vectors(tmp_path, {0, 6})
    assert [read_vectors(tmp_path, step, a_set()) is not None for step in (0, 3, 6)] == [True, False, True]


def test_a_damaged_file_is_named(tmp_path):
    write_vectors(tmp_path, 7, a_set(), QUERIES, DOCUMENTS)
    path = tmp_path / "queries" / "vectors-7.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BadInput, match="vectors-7.safetensors: damaged"):
        read_vectors(tmp_path, 7, a_set())


def test_a_large_set_keeps_none():
    numbers = MOST_BYTES // 4 // 5
    assert is_small(a_set(), numbers) and not is_small(a_set(), numbers + 1)
