"""The plan is a pure function: every row once, the same global batches for every world, any step at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.planner import BatchPlan, RowKeys, rank_slice

plans = st.builds(
    BatchPlan,
    rows=st.integers(2, 500),
    batch_size=st.integers(2, 64),
    fingerprint=st.text("abc", max_size=4),
    seed=st.integers(0, 9),
    last_batch=st.sampled_from(["keep", "drop"]),
)


@given(plans, st.integers(0, 5))
def test_every_row_at_most_once_and_the_rest_is_counted(plan, epoch):
    batches = plan.epoch(epoch)
    rows = np.concatenate(batches) if batches else np.array([], dtype=int)
    assert len(batches) == plan.steps_per_epoch
    assert len(set(rows.tolist())) == len(rows) == plan.rows - plan.left_out_per_epoch
    assert all(len(batch) == plan.batch_size for batch in batches[:-1])
    assert all(2 <= len(batch) <= plan.batch_size for batch in batches)


@given(plans, st.integers(1, 9))
def test_slices_of_all_ranks_make_the_batch_in_order_whatever_the_world(plan, world):
    for batch in plan.epoch(0):
        slices = [rank_slice(batch, rank, world) for rank in range(world)]
        assert np.concatenate(slices).tolist() == batch.tolist()
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_keeping_the_last_batch_leaves_out_one_row_at_most():
    assert BatchPlan(10, 4, "f", 0).left_out_per_epoch == 0
    assert BatchPlan(9, 4, "f", 0).left_out_per_epoch == 1  # a batch of one has no in-batch negative
    assert BatchPlan(10, 4, "f", 0, "drop").left_out_per_epoch == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "other"}])
def test_another_seed_or_other_data_is_another_order(change):
    first = {"rows": 200, "batch_size": 8, "fingerprint": "f", "seed": 0}
    one, other = BatchPlan(**first), BatchPlan(**(first | change))
    assert np.concatenate(one.epoch(0)).tolist() != np.concatenate(other.epoch(0)).tolist()


def test_every_epoch_is_another_order_and_the_same_each_time():
    plan = BatchPlan(200, 8, "f", 0)
    assert np.concatenate(plan.epoch(0)).tolist() != np.concatenate(plan.epoch(1)).tolist()
    assert np.concatenate(plan.epoch(1)).tolist() == np.concatenate(BatchPlan(200, 8, "f", 0).epoch(1)).tolist()


def shared_keys(rows: int, groups: list[list[int]]) -> RowKeys:
    """Row i has key i of its own and key rows + g for each group g it is in."""
    keys = [[i] + [rows + g for g, members in enumerate(groups) if i in members] for i in range(rows)]
    return RowKeys(np.array([k for row in keys for k in row]), np.cumsum([len(row) for row in keys]))


@given(
    st.integers(40, 120),
    st.integers(2, 8),
    st.lists(st.lists(st.integers(0, 39), min_size=2, max_size=4, unique=True), max_size=8),
    st.integers(0, 3),
)
def test_no_batch_holds_two_rows_that_share_a_text_or_document(rows, batch_size, groups, epoch):
    plan = BatchPlan(rows, batch_size, "f", 0, keys=shared_keys(rows, groups))
    order, meeting = plan.arrange(epoch)
    assert sorted(order.tolist()) == list(range(rows)) and meeting == 0
    for batch in plan.epoch(epoch):
        for members in groups:
            assert len(set(members) & set(batch.tolist())) <= 1


def test_without_the_keys_such_rows_do_meet():
    groups = [[i, i + 20] for i in range(20)]
    meets = [len({*g} & {*b.tolist()}) > 1 for b in BatchPlan(40, 20, "f", 0).epoch(0) for g in groups]
    assert any(meets)


def test_a_text_more_frequent_than_batches_is_counted_and_its_rows_are_kept():
    plan = BatchPlan(40, 10, "f", 0, keys=shared_keys(40, [list(range(7))]))  # 7 copies, 4 batches
    order, meeting = plan.arrange(0)
    assert meeting == 3
    assert sorted(order.tolist()) == list(range(40))


def test_a_million_rows_with_duplicates_are_arranged_without_any_meeting():
    rows = 1_000_000
    keys = np.arange(rows)
    keys[: rows // 100] = np.arange(rows // 100) // 4  # 1 % of the rows in groups of four
    plan = BatchPlan(rows, 512, "f", 0, keys=RowKeys(keys, np.arange(1, rows + 1)))
    order, meeting = plan.arrange(0)
    assert meeting == 0
    code = np.sort((np.arange(rows) // 512) * rows + keys[order])
    assert (code[1:] != code[:-1]).all()


def test_the_order_is_the_one_of_this_plan_version():
    """A change of the permutation would silently reorder resumed runs: raise PLAN_VERSION with it."""
    assert BatchPlan(10, 4, "f", 3).epoch(2)[0].tolist() == [2, 7, 5, 3]
