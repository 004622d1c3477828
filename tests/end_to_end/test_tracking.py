"""Early stopping, the best epoch, the general set and the trackers in whole runs, also where they are interrupted."""

import json
import re
import shutil
import struct

import pytest
import torch

from data_prep.reading.retrieval_sets import load_set
from tests import forked, tiny
from tests.end_to_end.runs import events, losses, weights, write_run
from tests.launching import ROOT
from trainer.__main__ import main
from trainer.config.sections import ModelConfig
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_folder

# never better than the first epoch by 1, so the run ends after the third
STOPS = ["watch.patience=2", "watch.min_delta=1", "watch.keep_last=true", "train.epochs=9"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Shards with an eval split, and a general set of other texts."""
    folder = tmp_path_factory.mktemp("sets")
    general = folder / "general"
    general.mkdir()
    rows = tiny.rows(8, seed=5)
    texts = {"corpus": [r["positives"][0] for r in rows], "queries": [r["query"] for r in rows]}
    for name, lines in texts.items():
        made = "".join(json.dumps({"id": f"{name}{i}", "text": text}) + "\n" for i, text in enumerate(lines))
        (general / f"{name}.jsonl").write_text(made)
    (general / "qrels.tsv").write_text("".join(f"queries{i}\tcorpus{i}\t1\n" for i in range(8)))
    return tiny.shards(folder / "train", 60, eval_fraction=0.2), general


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny_bert, sets):
    """A run that ended early, tracked by Weights & Biases without a network, with a key in the environment."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("stopped")
    run_file = write_run(folder, tiny_bert, sets[0])
    example = re.search(
        r"## Callbacks.*?```python\n(.*?)```", (ROOT / "docs/reference/logs.md").read_text(), re.DOTALL
    )[1]
    (folder / "my_callbacks.py").write_text(example)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, value in (("PROJECT", "tiny"), ("MODE", "offline"), ("API_KEY", "planted" * 6)):
            patch.setenv(f"WANDB_{name}", value)
        told = "train.callbacks=[my_callbacks:Best]"
        assert main(["--config", str(run_file), *STOPS, f"data.general={sets[1]}", "run_name=first", told]) == 0
    return run_file, folder / "out"


def test_the_log_of_a_run_holds_everything_that_is_promised(stopped):
    out = stopped[1]
    for step in events(out):
        for name in (
            "loss", "lr", "grad_norm", "temperature", "tokens_per_second", "pairs_per_second", "padding_share",
            "masked_negatives", "memory_gib", "positive_similarity", "negative_similarity",
        ):  # fmt: skip
            assert isinstance(step[name], (int, float)), name
    epochs = events(out, "epoch")
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    for event in epochs:
        spent = event["seconds"]
        assert spent["steps"] > 0 and spent["evaluation"] > 0
        assert sum(v for k, v in spent.items() if k != "whole") == pytest.approx(spent["whole"], abs=0.01)
        assert {"nDCG@10", "general/nDCG@10"} <= event["evaluation"].keys() and event["train_loss"] > 0
    assert epochs[1]["seconds"]["checkpoints"] > 0  # of the first epoch's


def test_a_run_that_is_not_getting_better_ends_and_hands_over_its_best(stopped):
    """The highest value makes the best one; min_delta is of patience only."""
    out = stopped[1]
    summary = json.loads((out / "training_summary_report.json").read_text())
    assert summary["stopped_early"] and summary["epochs"] == 3
    values = [event["evaluation"]["nDCG@10"] for event in events(out, "epoch")]
    before = events(out, "evaluation")[0]["nDCG@10"]
    assert max(values) > before, "or the test shows nothing"
    number, best = values.index(max(values)) + 1, summary["best"]
    assert (best["epoch"], best["metric"], best["model"]) == (number, "nDCG@10", str(out / "final"))
    assert best["value"] == max(values)
    assert number > 1, "or min_delta may have decided"
    kept, of_epoch = weights(out / "final"), weights(out / f"checkpoint-epoch-{number}")
    assert all(torch.equal(tensor, of_epoch[key]) for key, tensor in kept.items())
    assert (out / "last").is_dir() == (number < 3)
    assert not list(out.glob("best-step-*"))


def test_the_callback_of_the_docs_hears_the_evaluations(stopped):
    best = json.loads((stopped[1] / "best_so_far.json").read_text())
    own = [event for event in events(stopped[1], "evaluation") if "source" not in event]
    assert best["nDCG@10"] == max(event["nDCG@10"] for event in own) and best["output_dir"] == str(stopped[1])


@pytest.mark.parametrize("left", [1, 2, 3])
def test_interrupted_after_any_epoch_it_ends_in_the_same_bytes_after_the_same_epoch(stopped, sets, tmp_path, left):
    run_file, out = stopped
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for name in ("final", *(f"checkpoint-epoch-{n}" for n in range(left + 1, 4))):
        shutil.rmtree(copy / name)
    asked = [*STOPS, f"data.general={sets[1]}", f"output_dir={copy}"]
    assert main(["--config", str(run_file), "--resume", *asked]) == 0
    assert losses(copy) == losses(out)
    expected = weights(out / "final")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(copy / "final").items())
    facts = [json.loads((folder / "training_summary_report.json").read_text()) for folder in (out, copy)]
    assert facts[0]["stopped_early"] and facts[1]["stopped_early"]
    assert facts[0]["best"]["epoch"] == facts[1]["best"]["epoch"]
    assert facts[0]["best"]["value"] == facts[1]["best"]["value"] and facts[0]["verdict"] == facts[1]["verdict"]
    assert (copy / "final" / "verdict.json").read_bytes() == (out / "final" / "verdict.json").read_bytes()


@pytest.mark.parametrize(("engine", "lr"), [("ddp", 1e-3), ("zero3", 1e-3), ("zero3", 0.5)])
def test_two_ranks_hand_over_the_best_model_that_they_measured(stopped, sets, tmp_path, tiny_bert, engine, lr):
    model = tiny_bert if lr < 0.1 else stopped[1] / "final"  # there is something to spoil
    run_file, out = write_run(tmp_path, model, sets[0], epochs=2), tmp_path / "out"
    more = ["watch.every_steps=1", f"optim.lr={lr}", "optim.schedule=constant", "optim.warmup_ratio=0"]
    done = forked.run_ranks(2, "-m", "trainer", "--config", str(run_file), "--engine", engine, *more)
    assert done.returncode == 0, done.both[-3000:]
    measured = {event["step"]: event["nDCG@10"] for event in events(out, "evaluation")}
    assert sorted(measured) == list(range(len(events(out)) + 1)), "before training and after every step"
    facts = json.loads((out / "final" / "verdict.json").read_text())
    best = max(measured, key=lambda step: (measured[step], -step))
    assert facts["final"]["step"] == best and (best == 0) == (lr == 0.5)
    assert facts["verdict"] == ("better" if best else "worse") and f"verdict: {facts['verdict']}" in done.both
    kept = evaluate_folder(ModelConfig(path=str(out / "final")), load_set(sets[0]), "cpu")
    assert means(kept)["nDCG@10"] == pytest.approx(measured[best], abs=1e-6)


def wandb_records(path):
    """The records of a run file of Weights & Biases: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, held = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15  # of the block: a header that does not fit in is in the next one
        if left < 7:
            at += left
            continue
        size, part = struct.unpack_from("<HB", data, at + 4)
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(held)
            yield record
            held = b""


def test_weights_and_biases_offline_has_the_numbers_and_no_key(stopped):
    out = stopped[1]
    [file] = (out / "wandb").glob("offline-run-*/run-*.wandb")
    runs, logged = [], {}
    for record in wandb_records(file):
        runs += [record.run] if record.run.project else []
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in values:
            logged[int(values["_step"])] = json.loads(values["train/loss"])
    assert (runs[0].project, runs[0].display_name) == ("tiny", "first") and logged == losses(out)
    for path in out.rglob("*"):
        assert not path.is_file() or b"planted" not in path.read_bytes(), path


BROKEN = """
class Broken:
    def on_step(self, event):
        raise ValueError('planted')
"""


def test_a_callback_that_fails_ends_the_run_which_goes_on_without_it(
    tmp_path, tiny_bert, tiny_shards, monkeypatch, capfd
):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["--config", str(write_run(tmp_path, tiny_bert, tiny_shards, max_steps=2))]
    assert main([*command, "train.callbacks=[broken:Broken]"]) == 1
    said = capfd.readouterr().err
    assert said.count("broken:Broken failed in on_step, step 1 (ValueError: planted)") == 1 and "Traceback" not in said
    assert main([*command, "--resume"]) == 0
    assert list(losses(tmp_path / "out")) == [1, 2]


def test_a_metric_that_nothing_measures_is_refused(tmp_path, tiny_bert, tiny_shards, sets, capfd):
    run_file = str(write_run(tmp_path, tiny_bert, tiny_shards))
    assert main(["--config", run_file, "watch.patience=1"]) == 2
    assert "watch.metric: nDCG@10 needs data.eval, and the shards have no eval split" in capfd.readouterr().err
    assert main(["--config", run_file, "watch.metric=recal@10"]) == 2
    assert "Did you mean 'recall@10'?" in capfd.readouterr().err
    assert main(["--config", run_file, "watch.metric=general/MAP"]) == 2
    assert "needs the set 'general'" in capfd.readouterr().err
    assert main(["--config", run_file, "data.general=nowhere"]) == 2
    assert "data.general: nowhere: no such folder" in capfd.readouterr().err
