"""The hard negatives that an epoch takes of a row: pure, seeded, all before any again."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards.shared_keys import SourceRows, shared_keys
from trainer.planner.plan import BatchPlan
from trainer.planner.row_negatives import drawn_negatives

ROWS, COUNTS, SEEDS = st.integers(0, 2**40), st.integers(0, 60), st.integers(0, 2**31)


@given(ROWS, COUNTS, st.integers(0, 70), st.integers(0, 1000), SEEDS)
def test_an_epoch_takes_so_many_distinct_ones_in_their_order(row, count, most, epoch, seed):
    for sampling in ("random", "first"):
        taken = drawn_negatives(row, count, most, epoch, seed, sampling)
        assert len(taken) == min(count, most) and taken == sorted(set(taken))
        assert set(taken) <= set(range(count))
        assert taken == drawn_negatives(row, count, most, epoch, seed, sampling)
    assert drawn_negatives(row, count, most, epoch, seed, "first") == list(range(min(count, most)))
    assert drawn_negatives(row, count, None, epoch, seed, "random") == list(range(count))


@given(ROWS, st.integers(2, 40), st.data(), SEEDS, st.integers(0, 50))
def test_none_comes_again_before_all_others_came(row, count, data, seed, first):
    most = data.draw(st.integers(1, count - 1))
    seen = Counter()
    for epoch in range(first, first + count):
        seen.update(drawn_negatives(row, count, most, epoch, seed, "random"))
        assert max(seen.values()) - min(seen[i] for i in range(count)) <= 1
    assert set(seen.values()) == {most}, "in as many epochs as there are negatives each comes as often"


def test_rows_seeds_and_epochs_draw_apart_and_every_negative_as_often():
    first = [tuple(drawn_negatives(row, 6, 2, 0, 0, "random")) for row in range(3000)]
    assert len(set(first)) == 15, "every pair of six"
    hits = np.bincount(np.array(first).ravel(), minlength=6)
    assert ((hits - 1000) ** 2 / 1000).sum() < 30, "chi squared of five degrees: above 30 once in 70,000"
    assert sum(a != tuple(drawn_negatives(row, 6, 2, 0, 1, "random")) for row, a in enumerate(first)) > 2000
    assert all(a != tuple(drawn_negatives(row, 6, 2, 1, 0, "random")) for row, a in enumerate(first))


def test_the_draw_is_the_one_of_this_plan_version():
    """A change of the draw would silently change resumed runs: raise PLAN_VERSION with it."""
    drawn = [drawn_negatives(7, 5, 2, epoch, 3, "random") for epoch in range(6)]
    assert drawn == DRAWN


DRAWN = [[2, 4], [0, 3], [1, 4], [0, 2], [1, 3], [2, 4]]


def test_a_plan_draws_by_epochs_of_whole_passes():
    rows = SourceRows("s", np.arange(20), shared_keys(np.empty(0, np.int64), np.empty(0, np.int64)))
    options = {"cut": 2, "max_hard_negatives": 2, "negative_sampling": "random"}
    plan = BatchPlan((rows,), 4, "f", 3, **options)
    steps = [plan.negatives(step, 7, 5) for step in range(30)]
    assert steps == [DRAWN[step // 5] for step in range(30)]
    assert BatchPlan((rows,), 4, "f", 3).negatives(9, 7, 5) == [0, 1, 2, 3, 4]
