"""What the ends of epochs decide: the best one, when to stop, and the warnings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.sections import WatchConfig
from trainer.train.early_stopping import Watch

NAME = "nDCG@10"
values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def seen(watch: Watch, numbers: list[float], margins: list[float | None] | None = None) -> list:
    return [
        watch.see(epoch, {NAME: value}, 0.5, margins[epoch - 1] if margins else None)
        for epoch, value in enumerate(numbers, 1)
    ]


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


@given(values, st.integers(0, 12))
def test_a_watch_goes_on_from_what_a_checkpoint_holds(numbers, at):
    one, other = Watch(WatchConfig(patience=2)), Watch(WatchConfig(patience=2))
    one.before({NAME: 0.3}), other.before({NAME: 0.3})
    whole = seen(one, numbers)
    halves = seen(other, numbers[:at])
    other = Watch(WatchConfig(patience=2), json.loads(json.dumps(other.state)))
    halves += [other.see(epoch, {NAME: v}, 0.5, None) for epoch, v in enumerate(numbers[at:], len(numbers[:at]) + 1)]
    assert halves == whole and other.summary() == one.summary()


def test_the_train_loss_is_better_where_it_is_smaller():
    watch = Watch(WatchConfig(metric="train_loss", patience=1))
    assert [watch.see(i, None, loss, None).better for i, loss in enumerate((3.0, 2.0, 2.5), 1)] == [True, True, False]
    assert watch.over


def test_without_the_metric_there_is_no_verdict():
    watch = Watch(WatchConfig())
    assert not watch.see(1, None, 1.0, 0.1).better and watch.summary() is None


def test_over_fitting_is_a_rising_margin_with_a_falling_metric():
    warned = [bool(v.warnings) for v in seen(Watch(WatchConfig()), [0.6, 0.5, 0.7, 0.69], [0.3, 0.5, 0.6, 0.61])]
    assert warned == [False, True, False, False]  # the last rise is within the tolerance
    [text] = seen(Watch(WatchConfig()), [0.6, 0.5], [0.3, 0.5])[1].warnings
    assert "went from 0.300 to 0.500, and nDCG@10 fell from 0.6000 to 0.5000" in text


@pytest.mark.parametrize(("after", "warned"), [(0.59, False), (0.55, True)])
def test_forgetting_is_a_fall_on_the_general_set(after, warned):
    watch = Watch(WatchConfig())
    watch.before({NAME: 0.4, f"general/{NAME}": 0.6})
    verdict = watch.see(1, {NAME: 0.5, f"general/{NAME}": after}, 1.0, 0.3)
    assert verdict.better and bool(verdict.warnings) == warned
    assert not warned or "nDCG@10 on data.general was 0.6000 before training and is 0.5500" in verdict.warnings[0]


def test_forgetting_is_watched_as_well_where_the_train_loss_makes_the_best_epoch():
    watch = Watch(WatchConfig(metric="train_loss"))
    watch.before({f"general/{NAME}": 0.6})
    verdict = watch.see(1, {f"general/{NAME}": 0.4}, 1.0, 0.3)
    [text] = verdict.warnings
    assert verdict.better and text.startswith("forgetting: nDCG@10 on data.general was 0.6000 before")
