"""Decisions of evaluations: the best model, when to stop, and the warnings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.sections import WatchConfig
from trainer.train.early_stopping import Measured, Watch

NAME = "nDCG@10"
values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def seen(watch: Watch, numbers: list[float], margins: list[float | None] | None = None) -> list:
    return [
        watch.see(epoch, 10 * epoch, Measured({NAME: value}), 0.5, margins[epoch - 1] if margins else None)
        for epoch, value in enumerate(numbers, 1)
    ]


def begun(config: WatchConfig, before: float | None = None, **more: float) -> Watch:
    """A watch that has seen the model before training."""
    watch = Watch(config)
    watch.before(Measured(({NAME: before} if before is not None else {}) | more or None))
    return watch


@given(values, st.integers(1, 4), st.floats(0, 0.2))
def test_the_best_epoch_and_the_stop_are_those_of_the_rule(numbers, patience, min_delta):
    watch = Watch(WatchConfig(patience=patience, min_delta=min_delta))
    verdicts = seen(watch, numbers)
    best, since = numbers[0], 0
    for epoch, (value, verdict) in enumerate(zip(numbers, verdicts), 1):
        better = epoch == 1 or value - best > min_delta
        best, since = (value, 0) if better else (best, since + 1)
        assert verdict.better == better and verdict.over == (since >= patience)
    assert watch.summary()["value"] == best


@given(values, st.floats(0, 1), st.integers(1, 4), st.floats(0, 0.2))
def test_the_model_for_final_is_the_first_of_the_highest_and_is_kept_unless_the_base_is_higher(
    numbers, before, patience, min_delta
):
    watch = begun(WatchConfig(patience=patience, min_delta=min_delta), before)
    decisions = seen(watch, numbers)
    best = numbers.index(max(numbers))
    assert (watch.chosen["epoch"], watch.chosen["step"]) == (best + 1, 10 * best + 10)
    assert watch.summary()["value"] == max(numbers) and watch.summary()["before_training"] == before
    higher = [value > max([-1.0, *numbers[:i]]) for i, value in enumerate(numbers)]
    assert [one.best for one in decisions] == [high and value >= before for high, value in zip(higher, numbers)]


def test_the_choosing_queries_decide_and_all_are_reported():
    watch = Watch(WatchConfig(patience=1))
    watch.before(Measured({NAME: 0.9}, 0.1))
    first = watch.see(1, 10, Measured({NAME: 0.8}, 0.3), 0.5, None)
    second = watch.see(2, 20, Measured({NAME: 0.95}, 0.2), 0.5, None)
    assert first.best and not second.best and second.over
    summary = {"metric": NAME, "value": 0.8, "epoch": 1, "step": 10, "before_training": 0.9}
    assert watch.summary() == summary


def test_an_evaluation_within_an_epoch_can_be_the_best_and_does_not_count_as_an_epoch():
    watch = begun(WatchConfig(patience=1), 0.1)
    assert watch.measure(1, 5, Measured({NAME: 0.6}))
    assert not watch.lacks(5) and watch.lacks(10)
    decision = watch.see(1, 10, Measured({NAME: 0.5}), 0.5, None)
    assert decision.better and not decision.best and not decision.over and watch.chosen["step"] == 5
    assert not watch.measure(2, 15, Measured({NAME: 0.05})) and not watch.over


def test_a_run_of_an_earlier_version_goes_on_without_a_choice():
    """Its checkpoint knows nothing of it."""
    state = {"before": 0.3, "best": 0.5, "best_epoch": 1, "margin": 0.1, "waited": 0}
    watch = Watch(WatchConfig(patience=2), state)
    decision = watch.see(2, 20, Measured({NAME: 0.7}), 0.5, 0.1)
    assert decision.better and not decision.best and not watch.chooses and watch.chosen is None
    assert not Watch(WatchConfig(), dict(state)).lacks(20)
    summary = {"metric": NAME, "value": 0.7, "epoch": 2, "before_training": 0.3}
    assert watch.summary() == summary


@given(values, st.integers(0, 12))
def test_a_watch_goes_on_from_what_a_checkpoint_holds(numbers, at):
    one, other = Watch(WatchConfig(patience=2)), Watch(WatchConfig(patience=2))
    one.before(Measured({NAME: 0.3})), other.before(Measured({NAME: 0.3}))
    whole = seen(one, numbers)
    halves = seen(other, numbers[:at])
    other = Watch(WatchConfig(patience=2), json.loads(json.dumps(other.state)))
    rest = enumerate(numbers[at:], len(numbers[:at]) + 1)
    halves += [other.see(epoch, 10 * epoch, Measured({NAME: value}), 0.5, None) for epoch, value in rest]
    assert halves == whole and other.summary() == one.summary()


def test_the_train_loss_is_better_where_it_is_smaller():
    watch = begun(WatchConfig(metric="train_loss", patience=1), 0.5)
    decisions = [watch.see(i, 10 * i, Measured(), loss, None) for i, loss in enumerate((3.0, 2.0, 2.5), 1)]
    assert [one.better for one in decisions] == [one.best for one in decisions] == [True, True, False]
    assert watch.over and watch.chosen["epoch"] == 2


def test_without_the_metric_there_is_no_verdict():
    watch = Watch(WatchConfig())
    assert not watch.see(1, 10, Measured(), 1.0, 0.1).better and watch.summary() is None


def test_over_fitting_is_a_rising_margin_with_a_falling_metric():
    warned = [bool(v.warnings) for v in seen(Watch(WatchConfig()), [0.6, 0.5, 0.7, 0.69], [0.3, 0.5, 0.6, 0.61])]
    assert warned == [False, True, False, False]  # the last rise is within the tolerance
    [text] = seen(Watch(WatchConfig()), [0.6, 0.5], [0.3, 0.5])[1].warnings
    assert "went from 0.300 to 0.500, and nDCG@10 fell from 0.6000 to 0.5000" in text


@pytest.mark.parametrize(("after", "warned"), [(0.59, False), (0.55, True)])
def test_forgetting_is_a_fall_on_the_general_set(after, warned):
    watch = begun(WatchConfig(), 0.4, **{f"general/{NAME}": 0.6})
    decision = watch.see(1, 10, Measured({NAME: 0.5, f"general/{NAME}": after}), 1.0, 0.3)
    assert decision.better and bool(decision.warnings) == warned
    assert not warned or "nDCG@10 on data.general was 0.6000 before training and is 0.5500" in decision.warnings[0]


def test_forgetting_is_watched_as_well_where_the_train_loss_makes_the_best_epoch():
    watch = begun(WatchConfig(metric="train_loss"), **{f"general/{NAME}": 0.6})
    decision = watch.see(1, 10, Measured({f"general/{NAME}": 0.4}), 1.0, 0.3)
    [text] = decision.warnings
    assert decision.better and text.startswith("forgetting: nDCG@10 on data.general was 0.6000 before")
