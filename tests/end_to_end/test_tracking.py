"""Early stopping, the best epoch, the general set and the trackers in whole runs, also where they are interrupted."""

import json
import shutil
import struct

import pytest
import torch

from tests import tiny
from tests.end_to_end.runs import events, losses, weights, write_run
from trainer.__main__ import main

# never better than the first epoch by 1, so the run ends after the third
STOPS = ["watch.patience=2", "watch.min_delta=1", "watch.keep_best=true", "train.epochs=9"]


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
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PROJECT", "tiny"), ("MODE", "offline"), ("API_KEY", "planted" * 6)):
            patch.setenv(f"WANDB_{name}", value)
        assert main(["--config", str(run_file), *STOPS, f"data.general={sets[1]}", "run_name=first"]) == 0
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


def test_a_run_that_is_not_getting_better_ends_and_keeps_its_best(stopped):
    out = stopped[1]
    summary = json.loads((out / "training_summary_report.json").read_text())
    assert summary["stopped_early"] and summary["epochs"] == 3
    best, first = summary["best"], events(out, "epoch")[0]
    assert (best["epoch"], best["metric"], best["model"]) == (1, "nDCG@10", str(out / "best"))
    assert best["value"] == first["evaluation"]["nDCG@10"]
    kept, of_epoch = weights(out / "best"), weights(out / "checkpoint-epoch-1")
    assert all(torch.equal(tensor, of_epoch[name]) for name, tensor in kept.items())


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
    assert [f["best"]["epoch"] for f in facts] == [1, 1] and facts[0]["best"]["value"] == facts[1]["best"]["value"]


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


def test_a_metric_that_nothing_measures_is_refused(tmp_path, tiny_bert, tiny_shards, sets, capfd):
    run_file = str(write_run(tmp_path, tiny_bert, tiny_shards))
    assert main(["--config", run_file, "watch.patience=1"]) == 2
    assert "watch.metric: nDCG@10 needs data.eval, and the shards have no eval split" in capfd.readouterr().err
    assert main(["--config", run_file, "watch.metric=recal@10"]) == 2
    assert "Did you mean 'recall@10'?" in capfd.readouterr().err
    assert main(["--config", run_file, "watch.metric=general/MAP", "watch.keep_best=true"]) == 2
    assert "needs the set 'general'" in capfd.readouterr().err
    assert main(["--config", run_file, "data.general=nowhere"]) == 2
    assert "data.general: nowhere: no such folder" in capfd.readouterr().err
