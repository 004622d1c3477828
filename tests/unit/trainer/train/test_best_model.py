"""final/ is the best model that was measured, the one before training included; and the run says how much better."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from data_prep.reading.retrieval_sets import load_set
from tests import tiny
from tests.end_to_end.runs import events
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_folder
from trainer.export import main as export
from trainer.inference.text_encoder import TextEncoder
from trainer.reindex import main as reindex
from trainer.reporting.facts import read_facts
from trainer.run_dir import checkpoint_writer
from trainer.run_dir.layout import read_state
from trainer.run_dir.vectors import drop_vectors
from trainer.train.train import train

TEXTS = [row["query"] for row in tiny.rows(12, seed=3)]
SPOILT = 0.5  # a learning rate


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """119 queries to evaluate on: enough for two halves."""
    return tiny.shards(tmp_path_factory.mktemp("data") / "shards", 240, eval_fraction=0.5)


def start(
    out: Path, model: dict, shards: Path, lr=1e-3, resume=False, optim=None, watch=None, checkpoint=None, epochs=2
):
    """Trains and returns final/."""
    values = {"output_dir": str(out), "model": model, "data": {"train": str(shards)}}
    values |= {"optim": {"lr": lr, "schedule": "constant"} | (optim or {}), "watch": watch or {}}
    values |= {"train": {"batch_size": 32, "epochs": epochs, "micro_batch_tokens": 2000}}
    return train(parse_config(values | {"checkpoint": checkpoint or {}}, "test"), "run.json", resume=resume)


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_bert, shards):
    """final/ of a run that learns, measured four times."""
    out = tmp_path_factory.mktemp("good") / "out"
    more = {"watch": {"every_epochs": 0.5, "keep_last": True}, "checkpoint": {"keep_epochs": 1}}
    return start(out, {"path": str(tiny_bert)}, shards, **more)


@pytest.fixture
def run(tmp_path, tiny_bert, shards):
    def started(name="out", model=None, **more):
        return start(tmp_path / name, {"path": str(tiny_bert)} | (model or {}), shards, **more)

    return started


def embeddings(folder: Path) -> np.ndarray:
    return TextEncoder(ModelConfig(path=str(folder)), "cpu").queries(TEXTS)


def verdict(final: Path) -> dict:
    facts = json.loads((final / "verdict.json").read_text())
    assert facts == json.loads((final.parent / "verdict.json").read_text())
    summary = json.loads((final.parent / "training_summary_report.json").read_text())
    [event] = events(final.parent, "verdict")
    assert facts == summary["verdict"] and facts.items() <= event.items()
    return facts


def half(run_dir: Path, name: str) -> list[str]:
    return json.loads((run_dir / "queries" / "halves.json").read_text())[name]


def value(run_dir: Path, step: int, queries: list[str]) -> float:
    values = json.loads((run_dir / "queries" / f"step-{step}.json").read_text())["values"][""]
    return float(np.mean([values[query] for query in queries]))


def same_files(one: Path, other: Path) -> None:
    """All but those that name the output folder, or hash such a file."""
    names = [{p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in (one, other)]
    assert names[0] == names[1]
    for name in names[0] - {Path("training_config.json"), Path("complete.json")}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_choosing_half_picks_the_model_and_the_other_half_reports(good):
    out, facts = good.parent, verdict(good)
    choosing, reporting = half(out, "choosing"), half(out, "reporting")
    assert (len(choosing), len(reporting)) == (60, 59) and not set(choosing) & set(reporting)
    measured = {event["step"]: event["nDCG@10"] for event in events(out, "evaluation")}
    assert sorted(measured) == [0, 2, 4, 6, 8], "before training, and twice in an epoch"
    for step, over_all in measured.items():
        assert value(out, step, choosing + reporting) == pytest.approx(over_all)
    best = max(measured, key=lambda step: (value(out, step, choosing), -step))
    assert facts["final"]["step"] == best > 0 and facts["verdict"] == "better"
    assert facts["best"]["tuned"] == pytest.approx(value(out, best, reporting))
    assert facts["best"]["base"] == pytest.approx(value(out, 0, reporting)) and facts["best"]["queries"] == 59
    assert json.loads((good / "probe.json").read_text())["step"] == best
    last = out / "last" / "probe.json"
    assert json.loads(last.read_text())["step"] == 8 if best < 8 else not last.exists()
    assert not list(out.glob("best-step-*")) and len(list(out.glob("checkpoint-epoch-*"))) == 1


def test_the_report_embeds_nothing_that_the_run_has_embedded(good, tmp_path, capsys):
    out = good.parent
    kept = {path.name for path in (out / "queries").glob("vectors-*")}
    assert kept == {f"vectors-{step}.safetensors" for step in (0, verdict(good)["final"]["step"])}
    capsys.readouterr()
    shared = read_facts(out, None, None, "cpu").comparison
    assert "embedding" not in capsys.readouterr().err
    copy = shutil.copytree(out, tmp_path / "out")
    drop_vectors(copy, ())
    anew = read_facts(copy, None, None, "cpu").comparison
    assert capsys.readouterr().err.count("embedding") >= 2
    assert shared.read == anew.read and shared.changed.keys() == anew.changed.keys()
    for name, row in shared.table.items():
        for side in ("base", "tuned"):  # rounding may swap neighbours
            assert row[side] == pytest.approx(anew.table[name][side], abs=0.01)


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_a_spoilt_run_hands_over_the_model_before_training(run, good, tmp_path, capsys, mode, forked_loads):
    """Its own weights, or an adapter without an effect."""
    if mode == "qlora":
        pytest.importorskip("bitsandbytes")
    model = {"path": str(good), "finetune": mode} | ({"lora": {"r": 4, "alpha": 64}} if mode != "full" else {})
    final = run(lr=SPOILT if mode == "full" else 10.0, model=model, watch={"keep_last": True})
    facts = verdict(final)
    assert facts["verdict"] == "worse" and facts["final"] == {"model": "base", "step": 0, "epoch": 0}
    if mode == "qlora":  # its base is rounded
        weights = load_file(final / "adapter_model.safetensors")
        assert not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    else:
        assert np.allclose(embeddings(final), embeddings(good), atol=1e-6)
    assert not np.allclose(embeddings(final.parent / "last"), embeddings(good), atol=1e-2)
    said = capsys.readouterr().err
    assert "60 queries of shards choose the best model, 59 others report on it" in said
    line = next(line for line in said.splitlines() if line.startswith("verdict: worse"))
    assert line.endswith("final/ is the model before training")
    if mode == "qlora":  # seen here: bitsandbytes 0.50 fails on 4-bit rows of 32 numbers in a fresh process
        return
    assert export([str(final.parent), "--output", str(tmp_path / "exported")]) == 0
    assert capsys.readouterr().err.startswith(f"{final.parent}: {line}"), "first of all"
    store = ["--store", "chroma", "--path", str(tmp_path / "nowhere"), "--collection", "from", "--target", "into"]
    assert reindex(["--model", str(final), *store]) == 2
    assert capsys.readouterr().err.startswith(f"{final}: {line}\n"), "before it looks for the store"
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "## Verdict" in card and "* Verdict: worse than the model before training: nDCG@10" in card
    assert (tmp_path / "exported" / "verdict.json").is_file()


class Killed(BaseException):
    """An end without any clean-up of ours."""


def kill_at(monkeypatch, name: str) -> None:
    """The process ends when the folder `name` is about to appear."""
    whole = checkpoint_writer.os.replace

    def replace(source, target):
        if Path(target).name == name:
            raise Killed
        whole(source, target)

    monkeypatch.setattr(checkpoint_writer.os, "replace", replace)


KILLS = {
    "while final is written from the best model": ({"checkpoint": {"keep_epochs": 1}, "epochs": 3}, "final"),
    "before the checkpoint that names the best model": ({"optim": {"ema": 0.5}, "epochs": 3}, "checkpoint-epoch-2"),
    "while the model before training is written": ({"lr": SPOILT}, "final"),
}


@pytest.mark.parametrize("case", KILLS)
def test_killed_and_resumed_it_ends_in_the_same_final(run, good, monkeypatch, case):
    more, name = KILLS[case]
    more = more | {"model": {"path": str(good)}} if "lr" in more else more
    expected = run("whole", **more)
    kill_at(monkeypatch, name)
    with pytest.raises(Killed):
        run("cut", **more)
    monkeypatch.undo()
    final = run("cut", resume=True, **more)
    same_files(expected, final)
    assert not list(final.parent.glob("best-step-*")) and verdict(final) == verdict(expected)


def test_the_average_of_the_weights_is_measured_kept_and_handed_over(run):
    final = run(optim={"ema": 0.5}, watch={"every_steps": 1, "metric": "MAP"}, epochs=1)
    facts = verdict(final)
    step = facts["final"]["step"]
    evaluated = next(event for event in events(final.parent, "evaluation") if event["step"] == step)
    data = load_set(json.loads((final / "training_config.json").read_text())["data"]["train"])
    assert facts["metric"] == "MAP" and step > 0
    assert means(evaluate_folder(ModelConfig(path=str(final)), data, "cpu"))["MAP"] == pytest.approx(evaluated["MAP"])


def seal(folder: Path, values: dict) -> None:
    """Replaces the state of a checkpoint."""
    (folder / "state" / "trainer.json").write_text(json.dumps(values))
    (folder / "complete.json").unlink()
    checkpoint_writer._seal(folder)


def test_a_run_of_an_earlier_version_goes_on_and_ends_with_its_last_model(run, tmp_path, monkeypatch, capsys):
    """Its checkpoints and its run.json know nothing of best models."""
    kill_at(monkeypatch, "checkpoint-epoch-2")
    with pytest.raises(Killed):
        run(lr=SPOILT)
    monkeypatch.undo()
    checkpoint, record = tmp_path / "out" / "checkpoint-epoch-1", tmp_path / "out" / "run.json"
    state, began = json.loads((checkpoint / "state" / "trainer.json").read_text()), json.loads(record.read_text())
    state["watch"] = {key: state["watch"][key] for key in ("best", "best_epoch", "margin", "waited", "before")}
    seal(checkpoint, state)
    watch = {key: began["config"]["watch"][key] for key in ("metric", "patience", "min_delta", "tolerance")}
    record.write_text(json.dumps(began | {"config": began["config"] | {"watch": watch | {"keep_best": False}}}))
    shutil.rmtree(tmp_path / "out" / "queries")
    facts = verdict(final := run(lr=SPOILT, resume=True))
    assert facts["verdict"] == "not measured" and "earlier version" in facts["why"] and facts["final"]["step"] == 8
    last = load_file(final.parent / "checkpoint-epoch-2" / "model.safetensors")
    assert all(last[name].equal(tensor) for name, tensor in load_file(final / "model.safetensors").items())
    assert "verdict: not measured: the run began with an earlier version" in capsys.readouterr().err


def test_a_best_model_that_is_lost_is_named_and_the_others_compete_without_it(run, tmp_path, monkeypatch, capsys):
    more = {"optim": {"ema": 0.5}, "watch": {"every_steps": 1}}  # no checkpoint holds the average as a model
    kill_at(monkeypatch, "checkpoint-epoch-2")
    with pytest.raises(Killed):
        run(**more)
    monkeypatch.undo()
    chosen = read_state(tmp_path / "out" / "checkpoint-epoch-1").watch["chosen"]
    assert chosen["kept"] and chosen["step"] > 0
    for folder in (tmp_path / "out").glob("best-step-*"):
        shutil.rmtree(folder)
    facts = verdict(run(resume=True, **more))
    said = capsys.readouterr().err
    assert f"best-step-{chosen['step']}: unfinished (no complete.json): the best model so far is lost" in said
    assert facts["final"]["step"] > 4 and facts["verdict"] == "better"


@pytest.mark.parametrize("stated", [True, False])
def test_keep_best_of_older_run_files_is_read(stated):
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "d"}, "watch": {"keep_best": stated}}
    config = parse_config(values, "test")
    assert config.watch.keep_last is not stated
    assert parse_config(config.model_dump(mode="json"), "test") == config
