"""The comparison with sentence-transformers' trainer runs on a small set, mining included, and goes on where it was."""

import json
from importlib import import_module

from tests import tiny
from tests.launching import ROOT


def test_both_trainings_of_a_small_set_and_their_difference(tmp_path, tiny_bert, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script of that folder
    quality = import_module("quality_vs_sentence_transformers")
    shards, output = tiny.shards(tmp_path / "shards", 60, eval_fraction=0.3), tmp_path / "bench"
    where = ["--train", str(shards), "--output", str(output), "--model", str(tiny_bert), "--max-len", "16"]
    argv = ["quality.py", *where, "--seeds", "1", "--batch-size", "8", "--no-duplicates", "--only", "theirs"]
    monkeypatch.setattr("sys.argv", argv)
    quality.main()
    monkeypatch.setattr("sys.argv", [*argv, "recipe"])
    quality.main()
    cells = [json.loads(line) for line in (output / "cells.jsonl").read_text().splitlines()]
    assert [cell["case"] for cell in cells] == ["base", "theirs", "recipe"]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["case"] == "recipe - theirs"
    low, high = last["interval_95"]
    assert low <= last["difference"] <= high
