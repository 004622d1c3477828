"""Short runs of the trainer's own loop in this process: what a step and the end of a run leave behind."""

import json
import shutil
from itertools import count

import numpy as np
import pytest
from safetensors.torch import load_file

from data_prep.common.errors import BadInput
from data_prep.records import Record
from tests import tiny
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder
from trainer.preflight.inputs import Inputs
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


def test_the_loss_on_the_eval_split_is_the_mean_over_its_rows_in_batches(config, tiny_bert, tmp_path):
    """Two batches, of 16 rows and of fewer: their means count by rows."""
    shards = tiny.shards(tmp_path / "shards", 60, eval_fraction=0.45)
    values = config(data={"train": str(shards)}, watch={"eval_loss": True, "metrics": ["MRR"]})
    final = train(values, "run.json")
    lines = map(json.loads, (final.parent / "logs.jsonl").read_text().splitlines())
    before, after = (event["eval_loss"] for event in lines if event["event"] == "evaluation")
    inputs = Inputs(values)
    rows, plan = inputs.shards.split("eval"), inputs.eval_plan
    batches = [rows.take(plan.batch(step)[1].tolist()) for step in range(plan.steps_per_epoch)]
    assert {len(batch) for batch in batches} == {16, len(rows) - 16} and len(batches) == 2
    encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")
    by_row = [loss for batch in batches for loss in losses(encoder, batch)]
    assert before == pytest.approx(np.mean(by_row), rel=1e-5) and after != before


@pytest.mark.parametrize("pruned", [False, True])
def test_a_final_model_that_was_edited_is_refused_and_not_written_over(config, pruned):
    final = train(config(), "run.json")
    (final / "notes.md").write_text("mine")
    assert train(config(), "run.json", resume=True) == final, "more files are no change of the model"
    edited = final / "config_sentence_transformers.json"
    edited.write_text(edited.read_text().replace("{", '{"mine": 1,', 1))
    if pruned:
        shutil.rmtree(final.parent / "checkpoint-epoch-1")
    for lost in (None, final / "complete.json"):  # the end stands in the log as well
        if lost:
            lost.unlink()
        before = {path: path.read_bytes() for path in final.parent.rglob("*") if path.is_file()}
        with pytest.raises(BadInput, match=f"{lost.name if lost else edited.name}.*finished; move final/ away to"):
            train(config(), "run.json", resume=True)
        assert all(path.read_bytes() == data for path, data in before.items() if path.name != ".run.lock")


def test_a_final_model_that_a_kill_cut_is_written_again(config):
    """Before the end of the run stands in its log."""
    final = train(config(), "run.json")
    written = (final / "model.safetensors").read_bytes()
    (final / "complete.json").unlink()
    (final / "model.safetensors").unlink()
    log = final.parent / "logs.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"event": "end"' not in line))
    assert train(config(), "run.json", resume=True) == final
    assert (final / "model.safetensors").read_bytes() == written and (final / "complete.json").is_file()


def test_a_run_whose_only_checkpoint_is_damaged_does_not_begin_anew_over_its_best_model(config):
    more = {"checkpoint": {"keep_epochs": 1}}
    final = train(config(**more), "run.json")
    checkpoint, best = final.parent / "checkpoint-epoch-1", final.parent / "best-step-3"
    final.rename(best)
    (checkpoint / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match="checkpoint-epoch-1: model.safetensors .*remove these folders to begin anew"):
        train(config(**more), "run.json", resume=True)
    assert (best / "complete.json").is_file() and (checkpoint / "model.safetensors").read_bytes() == b"cut"
    shutil.rmtree(checkpoint)
    assert train(config(**more), "run.json", resume=True) == final


def losses(encoder: TextEncoder, rows: list[Record]) -> list[float]:
    """InfoNCE of each row over the positives and negatives of all, by its definition; temperature 0.05."""
    documents = [row.positives[0] for row in rows] + [text for row in rows for text in row.negatives]
    scores = encoder.queries([row.query for row in rows]) @ encoder.passages(documents).T / 0.05
    return [float(np.log(np.exp(line - line[i]).sum())) for i, line in enumerate(scores)]
