"""The plan is a pure function: every row once, the same global batches for every world, any step at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.planner import BatchPlan, rank_slice

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


def test_the_order_is_the_one_of_this_plan_version():
    """A change of the permutation would silently reorder resumed runs: raise PLAN_VERSION with it."""
    assert BatchPlan(10, 4, "f", 3).epoch(2)[0].tolist() == [2, 7, 5, 3]
