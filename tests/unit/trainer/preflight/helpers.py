"""Shared by the tests of preflight: runs broken in ways that several of them need."""

import json

from data_prep.__main__ import main as prep_main


def stray_output(run):
    (run.folder / "out").mkdir()
    (run.folder / "out" / "thesis.tex").write_text("precious")


def other_run(run):
    stray_output(run)
    (run.folder / "out" / "run.json").write_text("{}")


def graded_pairs(run):
    source = run.folder / "graded.json"
    source.write_text(json.dumps([[f"w{i}", f"w{i + 50}", 0.0] for i in range(20)]))
    assert prep_main(["shard", str(source), "--output", str(run.folder / "graded"), "--eval-fraction", "0"]) == 0
    run.values["data"]["train"] = str(run.folder / "graded")
