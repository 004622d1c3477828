"""The small runs: one base, no run twice, going on after an interruption, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from tests import tiny
from tests.end_to_end.runs import events
from trainer.config.loading import load_config, parse_config
from trainer.curves.page import write_page
from trainer.curves.price import price_of
from trainer.curves.result import describe_curve, lines
from trainer.curves.runs import make, plan_runs
from trainer.run_dir.queries import read_values
from trainer.train.train import train


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """About 120 train rows and 120 queries: two halves."""
    return tiny.shards(tmp_path_factory.mktemp("data") / "shards", 240, eval_fraction=0.5)


def config_of(model: Path, shards: Path, **more):
    values = {"output_dir": "unused", "model": {"path": str(model)}, "data": {"train": str(shards)}}
    values |= {"optim": {"lr": 1e-3}, "train": {"batch_size": 8, "micro_batch_tokens": 2000}}
    return parse_config(values | more, "test")


class Starts:
    """Starts runs in this process. after: so many runs, the next one fails."""

    def __init__(self, after: int = 99):
        self.after, self.made = after, []

    def __call__(self, run_file: Path) -> int:
        if len(self.made) == self.after:
            return 1
        self.made.append(run_file.parent.name)
        train(load_config(run_file), str(run_file), resume=True)
        return 0


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_bert, shards):
    """Runs on a fifth and on all of the data with two seeds, interrupted once, and what was started when."""
    folder = tmp_path_factory.mktemp("curve")
    runs, _ = plan_runs(config_of(tiny_bert, shards), [1.0, 0.2], 2, folder)
    first, second = Starts(after=2), Starts()
    with pytest.raises(Failed, match=r"fraction-1-seed-0: the run ended with exit code 1"):
        make(runs, first)
    make(runs, second)
    return runs, first.made, second.made


def test_what_is_finished_is_not_run_again(done, tiny_bert, shards):
    runs, first, second = done
    assert first == ["fraction-0.2-seed-0", "fraction-0.2-seed-1"]
    assert second == ["fraction-1-seed-0", "fraction-1-seed-1"]
    third = Starts()
    make(runs, third)
    assert third.made == []
    assert all(
        (run.folder / name).exists() for run in runs.in_order() for name in ("final", "verdict.json", "run.json")
    )


def test_smaller_shares_lie_in_larger_ones_and_no_shard_is_copied(done):
    runs, *_ = done
    for small, large in runs.by_seed:
        assert small.pairs < large.pairs
        assert events(small.folder)[-1]["step"] == math.ceil(small.pairs / 8) - (small.pairs % 8 == 1)
        assert not [*runs.folder.rglob("*.arrow")]


def test_the_base_is_measured_once_and_the_run_is_as_without_that(done, tmp_path):
    runs, *_ = done
    first, *others = runs.in_order()
    taken = [event for run in others for event in events(run.folder, "evaluation") if event["step"] == 0]
    assert len(taken) == 3 and {event["taken_from"] for event in taken} == {str(first.folder)}
    assert "taken_from" not in events(first.folder, "evaluation")[0]
    alone = others[0].config.model_copy(update={"output_dir": str(tmp_path / "alone")})
    train(alone, "run.json")
    for step in (0, events(others[0].folder)[-1]["step"]):
        one, other = (read_values(folder, step)[""] for folder in (others[0].folder, tmp_path / "alone"))
        assert one.keys() == other.keys() and np.allclose([*one.values()], [*other.values()], atol=1e-6)
    ours, theirs = (json.loads((f / "verdict.json").read_text()) for f in (others[0].folder, tmp_path / "alone"))
    assert ours["verdict"] == theirs["verdict"] and ours["best"]["queries"] == theirs["best"]["queries"]
    assert math.isclose(ours["best"]["difference"], theirs["best"]["difference"], abs_tol=1e-6)


def test_the_result_is_the_mean_over_the_queries_that_report(done):
    runs, *_ = done
    result = describe_curve(runs, [100, 1000], 0.5)
    for seed, of_seed in enumerate(runs.by_seed):
        for k, run in enumerate(of_seed):
            best = json.loads((run.folder / "verdict.json").read_text())["best"]
            assert math.isclose(result["measured"][k]["by_seed"][seed], best["tuned"], abs_tol=1e-9)
            assert math.isclose(result["before_training"], best["base"], abs_tol=1e-9)
            assert result["measured"][k]["pairs"][seed] == run.pairs
    assert [one["price"] for one in result["forecasts"]] == [50, 500]
    shown = "\n".join(lines(result))
    assert "the next 1,000 pairs: " in shown and ", for 500.00" in shown
    forecasts = [one | {"stop": True} for one in result["forecasts"]]
    hint = "two shares do not show the form"
    assert hint in "\n".join(lines(result | {"forecasts": forecasts}))
    assert hint not in "\n".join(lines(result | {"forecasts": [one | {"stop": False} for one in forecasts]}))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    page = write_page(result, runs.folder)
    assert page.count("<circle") == 4 and "500.00" in page and "http" not in page.replace("http://www.w3.org", "")
    assert ", for" not in "\n".join(lines(describe_curve(runs, [100], None)))


def test_shares_and_seeds_may_be_added(done, tiny_bert, shards):
    runs, *_ = done
    more, _ = plan_runs(config_of(tiny_bert, shards), [0.2, 0.5, 1.0], 1, runs.folder)
    starts = Starts()
    make(more, starts)
    assert starts.made == ["fraction-0.5-seed-0"]
    assert len(describe_curve(more, [10], None)["measured"]) == 3


def test_another_run_file_model_or_set_is_refused(done, tiny_bert, shards, tmp_path):
    runs, *_ = done
    with pytest.raises(BadInput, match=r"cannot resume, optim\.lr"):
        plan_runs(config_of(tiny_bert, shards, optim={"lr": 2e-3}), [0.2, 1.0], 2, runs.folder)
    other = tiny.model(tmp_path / "other", layers=1)
    changed, _ = plan_runs(config_of(other, shards), [0.2, 1.0], 1, tmp_path / "new")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "base.json").write_text(json.dumps(runs.base))
    with pytest.raises(BadInput, match="the model before training is another one"):
        make(changed, Starts())
    (tmp_path / "new" / "base.json").write_text(json.dumps(changed.base | {"set": "another"}))
    with pytest.raises(BadInput, match="the evaluation set is another one"):
        make(changed, Starts())


@pytest.mark.parametrize(
    ("fractions", "seeds", "more", "text"),
    [
        ([0.5], 1, {}, "needs two shares"),
        ([0.5, 0.5], 1, {}, "0.5: stands twice"),
        ([0.0, 1.0], 1, {}, "--fractions 0.0: must lie above 0"),
        ([0.5, 1.5], 1, {}, "--fractions 1.5: must lie above 0, and be at most 1"),
        ([0.5, 1.0], 0, {}, "--seeds 0: must be 1 or more"),
        ([0.01, 1.0], 1, {}, r"share of 0.01 \(data.fraction\), fewer than one batch"),
        ([0.999, 1.0], 1, {}, "both hold .* pairs with seed 0"),
        ([0.5, 1.0], 1, {"train": {"batch_size": 8, "max_steps": 9}}, "would not see all of them"),
        (
            [0.5, 1.0],
            1,
            {"eval": False},
            "watch.metric: a curve needs nDCG@10 of a retrieval set, and data.eval is off",
        ),
    ],
)
def test_what_gives_no_curve_is_refused_before_any_run(fractions, seeds, more, text, tiny_bert, shards, tmp_path):
    if "eval" in more:
        more = {"data": {"train": str(shards), "eval": False}}
    with pytest.raises(BadInput, match=text):
        plan_runs(config_of(tiny_bert, shards, **more), fractions, seeds, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_price_is_the_cost_of_the_generation_by_its_pairs(tmp_path):
    path = tmp_path / "pairs.usage.json"
    path.write_text(json.dumps({"pairs": 50, "cost": 0.25}))
    assert math.isclose(price_of(path), 0.005)
    for content, text in (
        ({"pairs": 50, "cost": None}, "holds no cost; generate again"),
        ({"pairs": 0, "cost": 1.0}, "is not what data_prep generate writes"),
        ({"pairs": 5}, "is not what data_prep generate writes"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(BadInput, match=text):
            price_of(path)
    with pytest.raises(BadInput, match="no such file"):
        price_of(tmp_path / "none.json")
