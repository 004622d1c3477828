"""The benchmark of query adapters runs on a small set: store, map and full training, and goes on where it ended."""

import json
from importlib import import_module

from tests import tiny
from tests.launching import ROOT


def test_a_map_and_a_full_training_of_a_small_set_each_give_a_line(tmp_path, tiny_bert, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script of that folder
    query_side = import_module("query_side")
    shards, output = tiny.shards(tmp_path / "shards", 60), tmp_path / "bench"
    where = ["--data", str(shards), "--output", str(output), "--model", str(tiny_bert), "--max-len", "16"]
    argv = ["query_side.py", *where, "--seeds", "0", "--batch-size", "8", "--only"]
    monkeypatch.setattr("sys.argv", [*argv, "linear"])
    query_side.main()
    monkeypatch.setattr("sys.argv", [*argv, "linear", "full"])
    query_side.main()
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["linear", "full"]
    assert all(row["train"] and row["report"] for row in rows)
