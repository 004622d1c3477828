"""The plan is a pure function: every row once, the same global batches for every world, any step at once."""

import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards.shared_keys import Shared, SourceRows, shared_keys
from tests.soak.planner_scale import measured, write_sidecars
from trainer.planner.permutation import Permutation
from trainer.planner.plan import BatchPlan, rank_slice, shares
from trainer.planner.source_pass import Pass


def source(rows, groups=(), name="s"):
    """rows: a number, or the row ids. groups: lists of rows (index within the source) that share a key."""
    ids = np.arange(rows) if isinstance(rows, int) else np.array(rows)
    pairs = np.array([(row, key) for key, group in enumerate(groups) for row in group], np.int64).reshape(-1, 2)
    return SourceRows(name, ids, shared_keys(pairs[:, 0], pairs[:, 1]))


def plan_of(rows, batch_size, groups=(), **options):
    return BatchPlan((source(rows, groups),), batch_size, **({"fingerprint": "f", "seed": 0} | options))


def epoch_of(plan, epoch=0):
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [plan.batch(step) for step in steps]


def rows_of(plan, epoch=0):
    return np.concatenate([rows for _, rows in epoch_of(plan, epoch)]).tolist()


@st.composite
def plans(draw, mixings=("proportional",), most_sources=4):
    """Sources whose rows lie anywhere among each other, at least two rows (keep) or a batch (drop) each."""
    last_batch = draw(st.sampled_from(["keep", "drop"]))
    batch_size = draw(st.integers(2, 24))
    least = batch_size if last_batch == "drop" else 2
    sizes = draw(st.lists(st.integers(least, least + 150), min_size=1, max_size=most_sources))
    ids = np.random.default_rng(draw(st.integers(0, 9))).permutation(sum(sizes))
    parts = [np.sort(part) for part in np.split(ids, np.cumsum(sizes)[:-1])]
    sources = tuple(source(part, name=f"s{i}") for i, part in enumerate(parts))
    fingerprint, seed = draw(st.text("abc", max_size=4)), draw(st.integers(0, 9))
    return BatchPlan(sources, batch_size, fingerprint, seed, last_batch, draw(st.sampled_from(mixings)))


ANY_MIXING = ("proportional", "temperature", "round_robin")


@given(st.integers(1, 3000), st.text(max_size=5))
def test_a_permutation_holds_every_number_once_and_its_inverse_inverts(n, key):
    permutation = Permutation(n, key)
    order = permutation.at(np.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    assert permutation.place_of(order).tolist() == list(range(n))


def test_a_permutation_of_a_billion_is_entered_anywhere():
    places = np.array([0, 1, 123_456_789, 999_999_999])
    permutation = Permutation(10**9, "k")
    assert permutation.place_of(permutation.at(places)).tolist() == places.tolist()


@pytest.mark.parametrize("n, keys", [(2, 400), (7, 1400), (100, 20000)])
def test_every_number_is_as_likely_at_every_place(n, keys):
    """Chi-square of the counts of (place, number) over many keys, against its mean and standard deviation."""
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), Permutation(n, str(key)).at(np.arange(n))] += 1
    expected, freedom = keys / n, (n - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_do_not_stay_neighbours():
    """The second one of two neighbours is as likely at any distance."""
    n, keys = 11, 3000
    counts = np.zeros(n)
    for key in range(keys):
        order = Permutation(n, str(key)).at(np.arange(2))
        counts[(order[1] - order[0]) % n] += 1
    assert counts[0] == 0
    assert ((counts[1:] - keys / (n - 1)) ** 2 / (keys / (n - 1))).sum() < 9 + 5 * 18**0.5


@given(plans(), st.integers(0, 5))
def test_every_row_at_most_once_an_epoch_and_the_rest_is_counted(plan, epoch):
    batches = epoch_of(plan, epoch)
    rows = [row for _, batch in batches for row in batch.tolist()]
    assert len(set(rows)) == len(rows) == plan.rows - plan.left_out_per_epoch
    assert all(2 <= len(batch) <= plan.batch_size for _, batch in batches)
    assert sum(len(batch) < plan.batch_size for _, batch in batches) <= len(plan.sources)


@given(plans(ANY_MIXING))
def test_a_batch_holds_distinct_rows_of_the_source_it_names(plan):
    rows_of_source = {part.name: set(part.rows.tolist()) for part in plan.parts}
    for name, batch in epoch_of(plan, 1):
        assert batch.dtype == np.int64
        assert len(set(batch.tolist())) == len(batch)
        assert set(batch.tolist()) <= rows_of_source[name]


@given(plans(ANY_MIXING), st.sampled_from([1, 2, 3, 8]), st.integers(0, 9))
def test_slices_of_all_ranks_make_the_batch_whatever_the_world(plan, world, seed):
    for _, batch in epoch_of(plan):
        sizes = np.random.default_rng(seed).integers(1, 50, len(batch))
        place = {row: i for i, row in enumerate(batch.tolist())}
        slices = [rank_slice(batch, rank, world, sizes) for rank in range(world)]
        assert sorted(np.concatenate(slices).tolist()) == sorted(batch.tolist())
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
        for mine in slices:  # in the batch's order
            assert [place[row] for row in mine.tolist()] == sorted(place[row] for row in mine.tolist())
        loads = [sum(sizes[place[row]] for row in mine.tolist()) for mine in slices]
        assert max(loads) - min(loads) <= sizes.max()


def test_one_rank_takes_the_batch_as_it_is():
    assert rank_slice(np.array([5, 3, 9]), 0, 1, np.array([1, 7, 7])).tolist() == [5, 3, 9]


@given(plans(ANY_MIXING), st.data())
def test_a_step_reached_directly_is_the_one_reached_by_walking(plan, data):
    steps = 3 * plan.steps_per_epoch
    walked = [plan.batch(step) for step in range(steps)]
    for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=5)):
        fresh = BatchPlan(plan.parts, plan.batch_size, plan.fingerprint, plan.seed, plan.last_batch, plan.mixing)
        name, batch = fresh.batch(step)
        assert (name, batch.tolist()) == (walked[step][0], walked[step][1].tolist())


@given(plans(ANY_MIXING))
def test_a_stream_takes_whole_passes_one_after_the_other(plan):
    """Whatever the mixing, every batch of a source's pass is taken once before (the run being long enough) the next."""
    steps = [plan.batch(step) for step in range(2 * plan.steps_per_epoch)]
    for part, size in zip(plan.parts, plan._batches, strict=True):
        taken = Counter(row for name, batch in steps if name == part.name for row in batch.tolist())
        passes = sum(name == part.name for name, _ in steps) / size
        assert max(taken.values(), default=0) <= int(passes) + 1


def test_keeping_the_last_batch_leaves_out_one_row_at_most():
    assert plan_of(10, 4).left_out_per_epoch == 0
    assert plan_of(9, 4).left_out_per_epoch == 1  # a batch of one has no in-batch negative
    assert plan_of(10, 4, last_batch="drop").left_out_per_epoch == 2
    assert (plan_of(10, 4).last_batches, plan_of(9, 4).last_batches) == ([2], [4])


def test_another_row_stays_out_in_every_pass():
    plan = plan_of(9, 4)
    assert len({(set(range(9)) - set(rows_of(plan, epoch))).pop() for epoch in range(30)}) > 5


@pytest.mark.parametrize("change", [{"seed": 1}, {"fingerprint": "other"}])
def test_another_seed_or_other_data_is_another_order(change):
    assert rows_of(plan_of(200, 8)) != rows_of(plan_of(200, 8, **change))


def test_every_epoch_and_every_source_is_another_order():
    plan = BatchPlan((source(200, name="a"), source(200, name="b")), 8, "f", 0)
    orders = [[b.tolist() for name, b in epoch_of(plan, epoch) if name == s] for epoch in (0, 1) for s in "ab"]
    assert len({str(sorted(order)) for order in orders}) == 4
    assert [name for name, _ in epoch_of(plan, 0)] != [name for name, _ in epoch_of(plan, 1)]


def test_temperature_takes_sources_by_a_power_of_their_rows():
    parts = (source(6400, name="a"), source(400, name="b"), source(2, name="c"))
    plan = BatchPlan(parts, 16, "f", 0, mixing="temperature")
    assert plan.steps_per_epoch == 400 + 25 + 1
    assert plan.quotas == [336, 84, 6]  # 426 in proportion to 80 : 20 : 1.41
    assert Counter(name for name, _ in epoch_of(plan, 3)) == {"a": 336, "b": 84, "c": 6}
    hot = BatchPlan(parts, 16, "f", 0, mixing="temperature", mixing_temperature=1e9)
    assert hot.quotas == [142, 142, 142]
    cold = BatchPlan(parts, 16, "f", 0, mixing="temperature", mixing_temperature=1.0)
    assert cold.quotas == [400, 25, 1]  # at least one


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_sum_up_and_none_is_empty(weights, more):
    total = len(weights) + more
    parts = shares(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1


def test_round_robin_takes_turns_and_goes_on_with_its_streams():
    plan = BatchPlan((source(40, name="a"), source(range(40, 50), name="b")), 10, "f", 0, mixing="round_robin")
    steps = [plan.batch(step) for step in range(20)]
    assert [name for name, _ in steps] == ["a", "b"] * 10
    a = [row for name, batch in steps for row in batch.tolist() if name == "a"]
    assert sorted(a[:40]) == sorted(a[40:80]) == list(range(40))
    assert a[:40] != a[40:80]
    assert all(sorted(batch.tolist()) == list(range(40, 50)) for name, batch in steps if name == "b")


def meeting_by_hand(batches, groups):
    """Rows that share a group with an earlier row of their batch."""
    found = 0
    for _, batch in batches:
        held = set()
        for row in batch.tolist():
            mine = {key for key, group in enumerate(groups) if row in group}
            found += bool(mine & held)
            held |= mine
    return found


sparse_groups = st.lists(st.lists(st.integers(0, 39), min_size=2, max_size=4, unique=True), max_size=8)


@given(st.integers(40, 120), st.integers(2, 8), sparse_groups, st.integers(0, 3))
def test_no_batch_holds_two_rows_that_share_a_text_or_document(rows, batch_size, groups, epoch):
    plan = plan_of(rows, batch_size, groups)
    assert plan.meeting(epoch) == meeting_by_hand(epoch_of(plan, epoch), groups) == 0


@given(
    st.integers(4, 60),
    st.integers(2, 30),
    st.lists(st.sets(st.integers(0, 59), min_size=1), max_size=12),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(ANY_MIXING),
)
def test_whatever_rows_share_they_are_counted_and_none_is_lost(rows, batch_size, groups, last_batch, mixing):
    batch_size = min(batch_size, rows)
    groups = [{row for row in group if row < rows} for group in groups]
    parts = (source(rows, groups), source(range(rows, 2 * rows), groups, "t"))
    plan = BatchPlan(parts, batch_size, "f", 0, last_batch, mixing)
    assert plan.meeting(1) == meeting_by_hand(epoch_of(plan, 1), [g | {row + rows for row in g} for g in groups])
    if mixing == "proportional":
        assert len(set(rows_of(plan))) == plan.rows - plan.left_out_per_epoch


def test_without_the_keys_such_rows_do_meet():
    groups = [[i, i + 20] for i in range(20)]
    assert meeting_by_hand(epoch_of(plan_of(40, 20)), groups) > 0
    assert meeting_by_hand(epoch_of(plan_of(40, 20, groups)), groups) == 0
    loose = plan_of(40, 20, groups, apart=frozenset())
    assert meeting_by_hand(epoch_of(loose), groups) > 0
    assert loose.meeting(0) == 0


def test_few_rows_are_moved_and_the_others_stay_where_they_were():
    groups = [[i, i + 200] for i in range(200)]
    loose, apart = rows_of(plan_of(400, 20)), rows_of(plan_of(400, 20, groups))
    met = meeting_by_hand(epoch_of(plan_of(400, 20)), groups)
    assert 0 < sum(a != b for a, b in zip(loose, apart, strict=True)) <= 2 * met < 40


def test_a_text_more_frequent_than_batches_is_counted_and_its_rows_are_kept():
    plan = plan_of(40, 10, [range(7)])  # 7 copies, 4 batches
    assert plan.meeting(0) == 3
    assert sorted(rows_of(plan)) == list(range(40))


@pytest.mark.parametrize("copies", [50_000, 100_000])
def test_a_text_in_half_or_all_rows_is_looked_at_a_few_times_only(copies, monkeypatch):
    plan = plan_of(100_000, 512, [range(copies)])
    looks, members = [], Shared.members
    monkeypatch.setattr(Shared, "members", lambda self, keys: looks.append(keys) or members(self, keys))
    assert plan.meeting(0) == copies - plan.steps_per_epoch
    assert len(looks) <= 10


def test_many_frequent_classes_end_too():
    """Each of 100 texts in 1 % of the rows: most pairs cannot be kept apart, and trying ends."""
    rows, classes = 20_000, 100
    held = SourceRows("s", np.arange(rows), shared_keys(np.arange(rows), np.arange(rows) % classes))
    plan = BatchPlan((held,), 512, "f", 0)
    expected = sum(len(batch) - len(set((batch % classes).tolist())) for _, batch in epoch_of(plan))
    assert plan.meeting(0) == expected > 0
    assert sorted(rows_of(plan)) == list(range(rows))


def test_only_the_passes_of_an_epoch_are_held():
    parts = (source(600, name="a"), source(range(600, 610), name="b"))
    for mixing, most in (("proportional", 2), ("temperature", 12), ("round_robin", 70)):
        plan = BatchPlan(parts, 10, "f", 0, mixing=mixing)
        for epoch in range(3):
            epoch_of(plan, epoch)
            assert len(plan._passes) <= most


def test_a_source_without_a_batch_is_a_bug_of_the_caller():
    for rows, last_batch in ((1, "keep"), (5, "drop")):
        with pytest.raises(AssertionError):
            plan_of(rows, 8, last_batch=last_batch)


def test_the_order_is_the_one_of_this_plan_version():
    """A change of the order would silently reorder resumed runs: raise PLAN_VERSION with it."""
    groups = [[0, 1, 2], [3, 4], [5, 6, 7]]
    plan = BatchPlan((source(10, groups, "a"), source(range(10, 15), (), "b")), 4, "f", 3)
    assert [(name, batch.tolist()) for name, batch in epoch_of(plan, 2)] == [
        ("b", [12, 13, 14, 10]),
        ("a", [2, 5, 4, 9]),
        ("a", [1, 7]),
        ("a", [6, 0, 8, 3]),
    ]


def test_moved_rows_are_the_same_whoever_computes_them():
    held = source(1000, [range(i, 1000, 200) for i in range(200)])
    one, other = (Pass(held, 50, 20, "k", True) for _ in range(2))
    assert [one.batch(i).tolist() for i in range(20)] == [other.batch(i).tolist() for i in range(20)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_rows_cost_no_more_memory_than_a_hundred_thousand(tmp_path):
    found = {}
    for rows in (100_000, 1_000_000):
        write_sidecars(tmp_path / str(rows), rows)
        found[rows] = measured(tmp_path / str(rows))
    print(found)
    assert found[1_000_000]["resident_mib"] - found[100_000]["resident_mib"] < 16
    assert found[1_000_000]["batch_ms"] < 20  # about 0.3 on a free machine
    assert found[1_000_000]["meeting"] == 0
