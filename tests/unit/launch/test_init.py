"""`launch init`: the run file that it writes passes the dry run and trains, for every family and kind of data."""

import json

import pytest
import yaml

from launch.__main__ import main
from tests import plan_models, tiny
from trainer.config.loading import load_config
from trainer.train import dry_run
from trainer.train.train import train

FAMILIES = ("bert", "xlm-r", "modernbert", "qwen3", "t5")
DATA = ("pairs", "scored", "tokenised")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the models, and shards: pairs with negatives, graded pairs, pairs tokenised for each model."""
    from data_prep.__main__ import main as prepare

    home = tmp_path_factory.mktemp("init")
    for family in FAMILIES:
        tiny.model(home / family, family, tiny.FAMILIES[family])
    tiny.shards(home / "pairs", 60)
    rows = tiny.rows(60)
    graded = [{"query": r["query"], "item": r["positives"][0], "score": (i % 5) / 4} for i, r in enumerate(rows)]
    (home / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    base = ["--eval-fraction", "0", "--output"]
    assert prepare(["shard", str(home / "scored.jsonl"), *base, str(home / "scored")]) == 0
    for family in FAMILIES:
        tokens = ["--tokenizer", str(home / family)]
        assert prepare(["shard", str(home / "pairs.jsonl"), *base, str(home / f"tokenised-{family}"), *tokens]) == 0
    return home


def written(capsys, home, path, model: str, data: str, *more: str) -> dict:
    data = f"{data}-{model}" if data == "tokenised" else data
    argv = ["init", "--model", str(home / model), "--data", str(home / data), "--output", str(path), *more]
    assert main(argv) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == f"{path}\n"
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_writes_passes_the_dry_run_and_trains(capsys, home, tmp_path, family, data):
    path = tmp_path / "run.yaml"
    written(capsys, home, path, family, data, "train.device=cpu", f"output_dir={tmp_path / 'run'}", "train.max_steps=1")
    dry_run.show(load_config(path), resume=False)
    if DATA[FAMILIES.index(family) % 3] == data:
        assert (train(load_config(path), str(path)) / "config.json").is_file()


def test_lengths_and_batch_come_from_the_data(capsys, home, tmp_path):
    values = written(capsys, home, tmp_path / "run.yaml", "bert", "pairs", "train.device=cpu")
    queries, passages = [], []
    for line in (home / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        queries.append(2 + len(row["query"].split()))
        passages += [2 + len(text.split()) for text in (*row["positives"], *row["negatives"])]
    for name, lengths in (("query_max_len", queries), ("passage_max_len", passages)):
        held = sorted(lengths)[int(0.99 * len(lengths))]
        assert values["model"][name] == min(32, -(-held // 16) * 16)
    assert values["train"]["batch_size"] == 16 and values["train"]["epochs"] == 3
    assert values["train"]["precision"] == "fp32" and values["model"]["finetune"] == "full"
    assert values["loss"] == {"temperature": 0.05} and values["optim"] == {"lr": 2e-5}
    text = (tmp_path / "run.yaml").read_text()
    assert "# tokens; 99% of the texts have at most" in text and "# Start: python -m launch run --config" in text


def test_graded_pairs_get_a_loss_that_reads_their_scores(capsys, home, tmp_path):
    assert written(capsys, home, tmp_path / "run.yaml", "bert", "scored", "train.device=cpu")["loss"] == {
        "name": "cosent"
    }


def test_a_model_that_does_not_fit_in_full_gets_adapters(capsys, home, tmp_path):
    """8B: 16 bytes for each of 7.6 G weights are too many for 24 GB, 15 GB of a frozen base are not."""
    plan_models.folder(home / "8B", "8B")
    values = written(capsys, home, tmp_path / "run.yaml", "8B", "pairs", "--gpu", "RTX4090", "--gpus-per-node", "2")
    assert values["model"]["finetune"] == "lora" and values["optim"]["lr"] == 1e-4
    assert values["train"]["precision"] == "bf16"
    assert "--engine ddp --processes 2" in (tmp_path / "run.yaml").read_text()


def test_nothing_is_overwritten_and_what_is_wrong_is_said(capsys, home, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    argv = ["init", "--model", str(home / "bert"), "--data", str(home / "pairs"), "--output"]
    assert main([*argv, str(path)]) == 2
    assert "exists, and nothing is overwritten" in capsys.readouterr().err and path.read_text() == "mine"
    assert main([*argv, str(tmp_path / "run.json")]) == 2
    assert "ends in .yaml" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "new.yaml"), "train.batch_sise=3"]) == 2
    assert "Did you mean" in capsys.readouterr().err and not (tmp_path / "new.yaml").exists()
    assert main(["init", "--model", str(home / "nowhere"), "--data", str(home / "pairs"), "--output", "x/y.yaml"]) == 2
    assert "is not a folder" in capsys.readouterr().err
