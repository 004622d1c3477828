"""Errors and notes before a run starts: by `plan`, `run --dry-run` and `slurm`, and by each of them."""

import json

import pytest

from launch.__main__ import main
from launch.before_start import few_rows, rows_per_rank
from tests import tiny
from tests.end_to_end.runs import write_run

TIME = ["--time", "30"]


@pytest.fixture
def run_file(tmp_path, monkeypatch, tiny_bert, tiny_shards):
    monkeypatch.chdir(tmp_path)
    return str(write_run(tmp_path, tiny_bert, tiny_shards))


def finish(tmp_path):
    """The folder of a run that has ended."""
    final = tmp_path / "out" / "final"
    final.mkdir(parents=True)
    (final / "complete.json").write_text("{}")


def test_rows_per_rank():
    assert rows_per_rank(64, 16).startswith("rows per rank: 4 (global batch 64, 16 ranks)")
    assert rows_per_rank(64, 3).startswith("rows per rank: 21 to 22 (")
    assert few_rows(64, 16) == few_rows(2, 1) == []
    [line] = few_rows(8, 16)
    assert line.startswith("warning: 0 to 1 row(s)") and "8 of 16 ranks have none" in line
    assert "raise train.batch_size" in line
    [line] = few_rows(7, 2)
    assert line.startswith("warning: 3 to 4 row(s)") and "none" not in line


REFUSED = {
    "data that is not there": (["data.train=nowhere"], "nowhere"),
    "a model that is not there": (["model.path=./nowhere"], "nowhere"),
    "an evaluation set that is not there": (["data.eval=nowhere"], "data.eval"),
    "a batch above the rows": (["train.batch_size=100"], "fewer than one batch"),
    "modes that do not go together": (["model.lora={dora: true}", "model.finetune=full"], "lora"),
    "an output folder of somebody else": (["output_dir=full"], "not empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rendering_checks_what_submitting_checks(case, run_file, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    overrides, words = REFUSED[case]
    assert main(["slurm", "--config", run_file, *TIME, "--engine", "ddp", *overrides, "--output", "r.sbatch"]) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out and not (tmp_path / "r.sbatch").exists()


def test_a_problem_of_all_runs_of_a_sweep_is_named_once(run_file, capsys):
    sweep = ["--sweep", "optim.lr=1e-5,2e-5", "--sweep", "train.seed=0,1", "data.train=nowhere"]
    assert main(["slurm", "--config", run_file, *TIME, "--engine", "cpu", *sweep]) == 2
    assert capsys.readouterr().err.count("data.train") == 1


def test_one_bad_value_of_a_sweep_is_found_before_anything_runs(run_file, capsys):
    sweep = ["--sweep", "train.batch_size=16,100"]
    assert main(["slurm", "--config", run_file, *TIME, "--engine", "cpu", *sweep]) == 2
    assert "fewer than one batch (train.batch_size 100)" in capsys.readouterr().err


EIGHT_ROWS = {
    "slurm": ["slurm", *TIME, "--engine", "ddp", "--nodes", "2", "--ranks-per-node", "8"],
    "run": ["run", "--dry-run", "--engine", "ddp", "--processes", "16"],
    "plan": ["plan", "--nodes", "16", "--gpu-memory", "1GB"],
}


@pytest.mark.parametrize("command", EIGHT_ROWS)
def test_rows_per_rank_are_printed_and_too_few_are_a_warning(command, run_file, tmp_path, capsys):
    shards = tiny.shards(tmp_path / "eight", 8)
    few = [f"data.train={shards}", "train.batch_size=8", "train.device=cpu"]
    assert main([*EIGHT_ROWS[command], "--config", run_file, *few]) == 0
    said = "".join(capsys.readouterr())
    assert "rows per rank: 0 to 1 (global batch 8, 16 ranks)" in said
    assert "warning: 0 to 1 row(s) of a batch per rank, 8 of 16 ranks have none" in said
    assert main([*EIGHT_ROWS[command], "--config", run_file, "train.batch_size=64", "train.device=cpu"]) == 0
    said = "".join(capsys.readouterr())
    assert "rows per rank: 4 (global batch 64, 16 ranks)" in said and "ranks have none" not in said


def test_the_plan_as_json_says_so_too(run_file, capsys):
    assert main(["plan", "--config", run_file, "--nodes", "16", "--json", "train.device=cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"]["rows_per_rank"] == 1 and "1 row(s) of a batch per rank" in facts["warnings"][0]


def test_a_finished_run_is_said(run_file, tmp_path, capsys):
    finish(tmp_path)
    assert main(["plan", "--config", run_file, "train.device=cpu"]) == 0
    assert "out holds a finished run: nothing would be trained" in capsys.readouterr().out
    assert main(["slurm", "--config", run_file, *TIME, "--engine", "cpu"]) == 2
    assert "out holds a finished run, so the job would train nothing" in capsys.readouterr().err
