"""Short runs of the trainer's own loop in this process: what a step and the end of a run leave behind."""

import json
from itertools import count

import pytest
from safetensors.torch import load_file

from trainer.config.loading import parse_config
from trainer.train.train import train


@pytest.fixture
def config(tmp_path, tiny_bert, tiny_shards):
    """Makes the run file's content for a run of three steps; more: further sections."""

    def make(**more):
        values = {"output_dir": str(tmp_path / "out"), "model": {"path": str(tiny_bert)}}
        values |= {"data": {"train": str(tiny_shards)}, "optim": {"lr": 1e-3, **more.pop("optim", {})}}
        values |= {"train": {"batch_size": 16, "max_steps": 3, "micro_batch_tokens": 300}}
        return parse_config(values | more, "test")

    return make


def test_a_skipped_step_leaves_the_learned_temperature_as_it_was(config):
    calls = count(1)

    def nothing_in_the_second_step(queries, positives, batch):
        loss = (1 - (queries * positives).sum(dim=1)).mean() / batch.temperature
        return loss * float("nan") if next(calls) == 2 else loss

    final = train(config(loss={"temperature_lr": 0.05}), "run.json", loss_fn=nothing_in_the_second_step)
    lines = map(json.loads, (final.parent / "logs.jsonl").read_text().splitlines())
    steps = [event for event in lines if event["event"] == "step"]
    assert [bool(event.get("skipped")) for event in steps] == [False, True, False]
    first, second, third = (event["temperature"] for event in steps)
    assert first != second == third, "logged at the start of each step: the second one moved nothing"


def test_the_final_model_is_the_average_of_the_weights_where_one_is_kept(config):
    final = train(config(optim={"ema": 0.5}), "run.json")
    state = load_file(final.parent / "checkpoint-epoch-1" / "state" / "optimizer.safetensors")
    last, written = (load_file(final.with_name(name) / "model.safetensors") for name in ("checkpoint-epoch-1", "final"))
    averages = {name.removeprefix("ema."): tensor for name, tensor in state.items() if name.startswith("ema.")}
    assert averages and all(written[name].equal(tensor) for name, tensor in averages.items())
    assert any(not last[name].equal(tensor) for name, tensor in averages.items())
