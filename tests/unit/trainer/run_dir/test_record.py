"""A resumed run goes on with the learning rate that it recorded, whatever today's default is."""

import json
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from trainer.config.loading import parse_config
from trainer.config.recipe import recipe
from trainer.config.sections import LEARNING_RATES, DataConfig
from trainer.engine.optimizer import lr_factor
from trainer.planner.plan import PLAN_VERSION
from trainer.run_dir.record import Begun, as_begun, check_resumable, describe_run, recorded
from trainer.train import dry_run, fit
from trainer.train.train import train


@pytest.fixture
def config(tmp_path, tiny_bert, tiny_shards):
    def make(mode="lora", **optim):
        values = {"output_dir": str(tmp_path / "out"), "model": {"path": str(tiny_bert), "finetune": mode}}
        values |= {"data": {"train": str(tiny_shards)}, "optim": optim, "checkpoint": {"every_steps": 1}}
        values |= {"train": {"batch_size": 16, "max_steps": 4, "micro_batch_tokens": 300}}
        return parse_config(values, "test")

    return make


def record(config) -> None:
    write_json(Path(config.output_dir) / "run.json", describe_run(config, {}, "f", {"version": PLAN_VERSION}))


@pytest.mark.parametrize("mode", list(LEARNING_RATES))
@pytest.mark.parametrize("began", [2e-5, 5e-4])
def test_a_run_file_without_a_rate_takes_the_recorded_one(config, tmp_path, mode, began):
    (tmp_path / "out").mkdir()
    record(config(mode, lr=began))
    assert recorded(tmp_path / "out") == Begun(began, "random")
    check_resumable(tmp_path / "out", config(mode), "f")
    resumed = as_begun(config(mode), Begun(began))
    assert resumed.optim.lr == began and not resumed.optim.states_lr
    if began != LEARNING_RATES[mode]:
        assert f"{began:g} (optim.lr, of run.json, with which the run began; the default" in recipe(resumed)[-1]


def test_a_stated_rate_that_is_not_the_recorded_one_is_refused(config, tmp_path):
    (tmp_path / "out").mkdir()
    record(config(lr=2e-5))
    assert as_begun(config(lr=1e-4), Begun(2e-5)).optim.lr == 1e-4
    with pytest.raises(BadInput, match="lr: 2e-05 in run.json, 0.0001 now; resume with the run file"):
        check_resumable(tmp_path / "out", config(lr=1e-4), "f")


def test_a_run_older_than_the_draw_of_negatives_goes_on_with_the_first_ones(config, tmp_path):
    (tmp_path / "out").mkdir()
    values = describe_run(config(), {}, "f", {"version": PLAN_VERSION})
    del values["config"]["data"]["negative_sampling"]
    write_json(tmp_path / "out" / "run.json", values)
    begun = recorded(tmp_path / "out")
    assert begun.negative_sampling == "first" and config().data.negative_sampling == "random"
    assert as_begun(config(), begun).data.negative_sampling == "first"
    check_resumable(tmp_path / "out", config(), "f")
    stated = config().model_copy(update={"data": DataConfig(train="t", negative_sampling="random")})
    assert as_begun(stated, begun).data.negative_sampling == "random"
    with pytest.raises(BadInput, match="data.negative_sampling: 'first' in run.json, 'random' now"):
        check_resumable(tmp_path / "out", stated, "f")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"config": 1}', '{"config": {"optim": {}}}'])
def test_without_a_readable_record_nothing_is_recorded(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert recorded(tmp_path) == Begun()


def test_a_run_of_the_old_default_goes_on_with_it(config, tmp_path, monkeypatch, capsys):
    """Adapters had the rate of full fine-tuning, and run.json says so."""
    whole = fit.log_step

    def cut_after_two(job, step, *rest):
        if step == 2:
            raise KeyboardInterrupt
        whole(job, step, *rest)

    monkeypatch.setitem(LEARNING_RATES, "lora", 2e-5)
    monkeypatch.setattr(fit, "log_step", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(config(), "run.json")
    monkeypatch.undo()
    dry_run.show(config(), resume=True)
    assert "learning rate: 2e-05 (optim.lr, of run.json" in capsys.readouterr().out
    train(config(), "run.json", resume=True)
    assert "learning rate: 2e-05 (optim.lr, of run.json" in capsys.readouterr().err
    events = [json.loads(line) for line in (tmp_path / "out" / "logs.jsonl").read_text().splitlines()]
    rates = [event["lr"] for event in events if event["event"] == "step"]
    assert rates == pytest.approx([2e-5 * lr_factor(step, 4, config().optim) for step in range(4)])
    assert json.loads((tmp_path / "out" / "final" / "training_config.json").read_text())["optim"]["lr"] == 2e-5
