"""Near duplicates: planted ones are found, in any script; what is removed is one, whoever checks."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.records import Record
from data_prep.texts.near_duplicates import (
    CANDIDATES,
    Bands,
    NearDuplicates,
    jaccard,
    near_bytes,
    shingles,
    shingles_of,
    signatures,
)
from tests import planted


def found(records: list[Record], similarity: float = 0.85) -> tuple[list[int], NearDuplicates]:
    index = NearDuplicates(similarity)
    for record in records:
        index.add(record)
    return index.find(lambda rows: [records[row] for row in rows]).nonzero()[0].tolist(), index


def alike(one: Record, other: Record) -> float:
    sides = ((one.query, other.query), *zip(one.positives, other.positives))
    return min(jaccard(shingles_of([a]), shingles_of([b])) for a, b in sides)


@pytest.mark.parametrize("similarity", [0.7, 0.85, 0.95])
def test_planted_near_duplicates_are_found_and_distinct_rows_stay(similarity):
    rng = random.Random(1)
    records = planted.rows(900)
    copies = [planted.near(record, similarity, rng) for record in records[:300]]
    least = [alike(*pair) for pair in zip(records, copies)]
    assert similarity <= min(least) < similarity + 0.02
    gone, index = found([*records, *copies], similarity)
    assert not [row for row in gone if row < 900]
    assert len(gone) >= 0.95 * 300
    assert not index.unsure


def test_rows_below_the_similarity_stay():
    rng = random.Random(2)
    records = planted.rows(200)
    copies = [planted.near(record, 0.75, rng) for record in records]
    copies = [copy for record, copy in zip(records, copies) if alike(record, copy) < 0.85]
    assert len(copies) > 150
    assert found([*records, *copies])[0] == []


def test_query_and_positives_must_both_be_alike():
    rng = random.Random(3)
    (one,) = planted.rows(1)
    (other,) = planted.rows(1, seed=9)
    same_passage = Record(other.query, one.positives)
    same_query = Record(one.query, other.positives)
    assert found([one, same_passage, same_query])[0] == []
    assert found([one, same_passage, same_query, planted.near(one, 0.9, rng)])[0] == [3]


def test_positives_count_together_and_grades_apart():
    (one, other) = planted.rows(2)
    two = Record(one.query, [one.positives[0], other.positives[0]])
    turned = Record(one.query.upper(), [f"  {other.positives[0]}", one.positives[0]])
    assert found([two, turned, one])[0] == [1]
    graded = [Record(one.query, one.positives, score=score) for score in (0.0, 1.0, None, 1.0)]
    assert found(graded)[0] == [3]


def test_variants_stay_beside_their_parent():
    (one,) = planted.rows(1)
    variants = [Record(one.query + end, one.positives, metadata={"parent_query": one.query}) for end in "!?"]
    assert found([one, *variants])[0] == []
    assert found([*variants, one, Record(one.query + ".", one.positives)])[0] == [3]
    index = NearDuplicates()
    for variant in variants:  # alike in every key, as each is the first of its batch
        index.add_signatures(*signatures([variant], index.similarity))
    assert not index.find(lambda rows: [variants[row] for row in rows]).any()


def test_a_chain_keeps_what_is_near_to_removed_rows_only():
    rng = random.Random(4)
    (first,) = planted.rows(1)
    second = planted.near(first, 0.85, rng)
    third = planted.near(second, 0.85, rng)
    assert alike(first, third) < 0.85
    assert found([first, second, third])[0] == [1]


def test_texts_shorter_than_a_shingle():
    records = [Record("ab", ["日本"]), Record("AB ", ["日本"]), Record("ab", ["日"]), Record("abcd", ["日本"])]
    assert found(records)[0] == [1]
    assert shingles("ab") == {"ab"}
    assert shingles("abcde") == {"abcd", "bcde"}


def test_many_copies_of_one_row_cost_little_and_leave_the_first():
    (one,) = planted.rows(1)
    rng = random.Random(5)
    copies = [one, *(planted.near(one, 0.95, rng) for _ in range(20 * CANDIDATES))]
    asked = []
    index = NearDuplicates(0.85)
    for record in copies:
        index.add(record)
    gone = index.find(lambda rows: asked.append(len(rows)) or [copies[row] for row in rows])
    assert gone.tolist() == [False] + [True] * 20 * CANDIDATES
    assert not index.unsure


def test_rows_of_one_template_are_compared_with_some_and_counted():
    """The same question about other numbers: not alike enough, so all stay, but each shares bands with most others."""
    records = [Record(f"what is the meaning of article {i} {i}?", ["the same answer"]) for i in range(100, 400)]
    gone, index = found(records, 0.85)
    assert gone == []
    assert index.unsure >= 200


def test_memory_stays_below_what_is_stated_where_every_row_shares_every_band():
    rows, similarity = 50_000, 0.85
    keys = np.random.default_rng(0).integers(0, 1 << 32, (rows // 2, Bands(similarity, sides=2).count), np.uint32)
    tracemalloc.start()
    try:
        index = NearDuplicates(similarity)
        for some in np.split(keys, 10):
            index.add_signatures(some.repeat(2, axis=0), np.full((2 * len(some), 2), 4, np.int32))
        gone = index.find(lambda numbers: [Record("a query", ["a text"])] * len(numbers))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gone.sum() >= rows // 2
    assert peak <= rows * near_bytes(similarity) + (3 << 20)


def test_nothing_at_all_and_one_row():
    assert found([])[0] == []
    assert found(planted.rows(1))[0] == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["what is mould", "what is a mould", "why"]), st.text(max_size=6))))
def test_whatever_is_removed_has_a_kept_near_duplicate(pairs):
    records = [Record(f"{query}?", [f"some passage that is shared {more}."]) for query, more in pairs]
    gone, _ = found(records, 0.8)
    kept = [row for row in range(len(records)) if row not in gone]
    for row in gone:
        assert any(alike(records[row], records[other]) >= 0.8 for other in kept if other < row)
    assert found(records, 0.8)[0] == gone
