"""A run opens each of its inputs once in a process, also in preflight, the gate, the dry run and the launch plan."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.shards.folder import ShardFolder
from launch.plan import estimate
from tests import tiny
from trainer.config.loading import load_config
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan
from trainer.train import dry_run
from trainer.train.train import train


@pytest.fixture
def opened(monkeypatch) -> Counter:
    """Counts what is opened or built, by kind and name."""
    counts: Counter = Counter()
    names = {
        ShardFolder: lambda folder: folder.path.name,
        RetrievalSet: lambda data: data.name,
        BatchPlan: lambda plan: plan.fingerprint[:8],
        ModelSpec: lambda spec: Path(spec.path).name,
    }

    def count(kind: type, name_of) -> None:
        original = kind.__init__

        def counting(self, *args, **values):
            original(self, *args, **values)
            counts[kind.__name__, name_of(self)] += 1

        monkeypatch.setattr(kind, "__init__", counting)

    for kind, name_of in names.items():
        count(kind, name_of)
    return counts


@pytest.fixture
def run_file(tmp_path, tiny_bert, monkeypatch) -> Path:
    """A run that evaluates on its own shards, other shards and a retrieval set; the gate's cache is empty."""
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "cache"))
    shards, other = (
        tiny.shards(tmp_path / name, 40, eval_fraction=0.3, seed=seed) for seed, name in enumerate(("shards", "other"))
    )
    general = tmp_path / "general"
    general.mkdir()
    rows = tiny.rows(10, seed=2)
    for name, key in (("corpus", "d"), ("queries", "q")):
        texts = [row["positives"][0] if key == "d" else row["query"] for row in rows]
        lines = [json.dumps({"id": f"{key}{i}", "text": text}) + "\n" for i, text in enumerate(texts)]
        (general / f"{name}.jsonl").write_text("".join(lines))
    (general / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(len(rows))))
    source = next(iter(json.loads((shards / "manifest.json").read_text())["sources"]))
    values = {
        "output_dir": str(tmp_path / "out"),
        "model": {"path": str(tiny_bert)},
        "data": {"train": str(shards), "general": str(general), "allow": ["leakage", "positives_as_negatives"]},
        "sources": {source: {"eval": str(other)}},
        "train": {"batch_size": 8, "epochs": 2, "device": "cpu"},
    }
    (tmp_path / "run.json").write_text(json.dumps(values))
    return tmp_path / "run.json"


def expected(kinds: set[tuple[str, str]], opened: Counter) -> None:
    assert {key for key in opened if key[0] != "BatchPlan"} == kinds
    assert [kind for kind, _ in opened].count("BatchPlan") == 1
    assert set(opened.values()) == {1}, opened


FOLDERS = {("ShardFolder", "shards"), ("ShardFolder", "other")}
SETS = {("RetrievalSet", "shards"), ("RetrievalSet", "other"), ("RetrievalSet", "general")}


def test_a_run_opens_everything_once(run_file, opened, tiny_bert):
    final = train(load_config(run_file), str(run_file))
    expected(FOLDERS | SETS | {("ModelSpec", tiny_bert.name)}, opened)
    assert final.is_dir()
    opened.clear()
    shutil.rmtree(final)
    train(load_config(run_file), str(run_file), resume=True)
    expected(FOLDERS | SETS | {("ModelSpec", tiny_bert.name)}, opened)


def test_a_dry_run_and_a_launch_plan_open_everything_once(run_file, opened, tiny_bert, capsys):
    config = load_config(run_file)
    dry_run.show(config, resume=False)
    expected(FOLDERS | SETS | {("ModelSpec", tiny_bert.name)}, opened)
    opened.clear()
    estimate.look(config, estimate.Ranks(1, 1, "cpu", 2**34))
    expected({("ShardFolder", "shards"), ("ModelSpec", tiny_bert.name)}, opened)
