"""A run that learnt nothing is known by its weights, its gradients, its loss and its metric."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from trainer.config.loading import parse_config
from trainer.run_dir.outcome import STILL, is_better, movement, nothing_learnt, sample_of
from trainer.train import fit
from trainer.train.train import train


def of(weights: dict) -> str:
    return sample_of(weights, weights.__getitem__)


def steps_of(losses, grad_norm=1.0, lr=1e-4, skipped=False) -> list[dict]:
    return [{"loss": loss, "grad_norm": grad_norm, "lr": lr, "skipped": skipped} for loss in losses]


def best_of(value, before, epoch=1) -> dict:
    return {"metric": "nDCG@10", "value": value, "epoch": epoch, "before_training": before}


FALLING, FLAT = [2.0, 1.8, 1.5, 1.2], [2.0, 2.01, 1.99, 2.0]
EPOCHS = [{"train_loss": 2.0}, {"train_loss": 2.0}]


@pytest.mark.parametrize(
    ("steps", "epochs", "best", "moved", "learnt", "said"),
    [
        (steps_of(FALLING), [], best_of(0.7, 0.5), 0.1, True, None),
        (steps_of(FALLING), [], None, None, True, None),
        (steps_of(FLAT), [], best_of(0.7, 0.5), 0.1, True, None),
        (steps_of(FLAT, skipped=True), [], None, 0.0, False, "each of the 4 steps was not finite"),
        (steps_of(FLAT, grad_norm=0.0), [], None, 0.0, False, "gradient was 0 at each of the 4 steps"),
        (steps_of(FALLING), [], best_of(0.7, 0.5), 0.0, False, "weights moved by 0 of their size. Its learning rate"),
        (steps_of(FALLING, lr=1e-12), [], None, 3e-9, False, "rose to 1e-12: try a larger one"),
        (steps_of(FLAT), [], None, 0.1, False, "2.0000 over the first quarter of the steps, 2.0000 over the last"),
        (steps_of(FALLING), EPOCHS, None, 0.1, False, "2.0000 over the first epoch, 2.0000 over the last"),
        (steps_of(FALLING), EPOCHS, best_of(0.2, None), 0.1, False, "no metric says otherwise"),
        (steps_of(FLAT), [], best_of(0.9677, 0.9677), 0.1, False, "nDCG@10 was 0.9677, and 0.9677 at best (epoch 1)"),
        (steps_of(FALLING), [], best_of(0.5, 0.6, epoch=3), 0.1, True, None),
        (steps_of(FLAT), [], best_of(0.5, 0.6, epoch=3), 0.1, False, "was 0.6000, and 0.5000 at best (epoch 3)"),
        (steps_of(FLAT[:3]), [], None, 0.1, True, None),
    ],
)
def test_what_is_said_of_a_run(steps, epochs, best, moved, learnt, said):
    line = nothing_learnt(steps, epochs, best, moved)
    assert (line is None) == learnt == (said is None)
    assert learnt or (said in line and line.startswith("this run learnt nothing: "))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_best_epoch_is_one_only_where_its_shown_number_is_higher(value, before):
    shown = float(f"{value:.4f}"), float(f"{before:.4f}")
    better = is_better(best_of(value, before))
    assert better == (shown[0] > shown[1])
    assert (nothing_learnt(steps_of(FLAT), [], best_of(value, before), 1.0) is None) == better
    assert is_better(best_of(value, None)) is None


def test_the_movement_of_weights_is_a_share_of_their_size():
    weights = {"a": torch.full((3, 50), 2.0), "b": torch.zeros(7), "c": torch.tensor(1.0)}
    began = of(weights)
    assert movement(began, of({name: tensor.clone() for name, tensor in weights.items()})) == 0
    assert movement(began, of({name: 1.5 * tensor for name, tensor in weights.items()})) == pytest.approx(0.5)
    assert movement(None, began) is None
    assert movement(of({"b": torch.zeros(7)}), of({"b": torch.ones(7)})) > STILL, "an adapter's B"
    assert of({"a": weights["a"].t()}) == of({"a": weights["a"]}), "however it lies in memory"


# --- runs ---


@pytest.fixture
def run(tmp_path, tiny_bert, tiny_shards, capsys):
    def start(name="out", loss_fn=None, resume=False, **more):
        values = {"output_dir": str(tmp_path / name), "model": {"path": str(tiny_bert)} | more.pop("model", {})}
        values |= {"data": more.pop("data", {"train": str(tiny_shards)}), "optim": more.pop("optim", {"lr": 1e-3})}
        values |= {"train": {"batch_size": 16, "max_steps": 6, "micro_batch_tokens": 300} | more.pop("train", {})}
        config = parse_config(values | more, "test")
        final = train(config, "run.json", resume=resume, loss_fn=loss_fn)
        summary = json.loads((final.parent / "training_summary_report.json").read_text())
        events = [json.loads(line) for line in (final.parent / "logs.jsonl").read_text().splitlines()]
        logged = [event["text"] for event in events if event["event"] == "warning"]
        said = capsys.readouterr()
        return summary, logged, said.out + said.err

    return start


def no_gradient(queries, positives, batch):
    return (queries * 0.0).sum()


def not_finite(queries, positives, batch):
    return (queries * float("nan")).sum()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"optim": {"lr": 1e-13}}, "the trained weights moved by"),
        ({"optim": {"lr": 1e-13}, "model": {"finetune": "lora"}}, "the trained weights moved by"),
        ({"optim": {"lr": 1e-13, "ema": 0.9}}, "the trained weights moved by"),
        ({"loss_fn": no_gradient, "optim": {"lr": 1e-3}}, "the gradient was 0 at each of the 6 steps"),
        ({"loss_fn": not_finite}, "the gradient of each of the 6 steps was not finite"),
    ],
)
def test_a_run_that_learnt_nothing_says_so_in_log_summary_and_console(run, more, reason):
    summary, logged, shown = run(**more)
    assert summary["learnt"] is False
    [text] = [line for line in logged if line.startswith("this run learnt nothing")]
    assert reason in text and text in summary["warnings"] and f"warning: {text}" in shown


def test_a_run_that_learns_says_nothing(run):
    for name, lr, model in (("full", 1e-3, {}), ("lora", 1e-2, {"finetune": "lora"})):
        summary, logged, shown = run(name, optim={"lr": lr}, model=model, train={"epochs": 3, "max_steps": None})
        assert summary["learnt"] is summary["verdict"]["learnt"] is True
        assert logged == summary["warnings"] == [] and "warning" not in shown


def test_an_epoch_no_better_than_before_training_is_no_gain(run, tmp_path, tiny_shards):
    data = {"train": str(tiny_shards), "eval": str(tiny.shards(tmp_path / "held", 60, eval_fraction=0.5, seed=3))}
    summary, logged, shown = run(optim={"lr": 1e-9}, data=data)
    best = summary["best"]
    assert best["better_than_before"] is False and best["value"] == pytest.approx(best["before_training"])
    assert summary["verdict"]["verdict"] == "no difference" and "verdict: no difference" in shown
    summary, logged, shown = run("good", optim={"lr": 1e-3}, data=data, train={"epochs": 4, "max_steps": None})
    assert summary["best"]["better_than_before"] is True and logged == []
    assert summary["verdict"]["verdict"] == "better" and "verdict: better" in shown


def test_a_resumed_run_compares_with_the_weights_of_its_first_start(run, tmp_path, monkeypatch):
    whole = fit.log_step

    def cut_after_two(job, step, *rest):
        if step == 2:
            raise KeyboardInterrupt
        whole(job, step, *rest)

    monkeypatch.setattr(fit, "log_step", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(optim={"lr": 1e-13}, checkpoint={"every_steps": 1})
    monkeypatch.undo()
    summary, logged, _ = run(optim={"lr": 1e-13}, checkpoint={"every_steps": 1}, resume=True)
    assert summary["learnt"] is False and "the trained weights moved by" in logged[-1]
    lines = map(json.loads, (tmp_path / "out" / "logs.jsonl").read_text().splitlines())
    starts = [event for event in lines if event["event"] == "start"]
    assert [("weights" in event, event["resumed"]) for event in starts] == [(True, False), (False, True)]
