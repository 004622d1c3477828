"""Launcher variables that no launcher leaves like this: named with the mend and exit code 2, never a silent wait."""

import os

import pytest

from data_prep.common.errors import BadInput
from launch.__main__ import main as launch
from tests.end_to_end.runs import write_run
from trainer.__main__ import main as train
from trainer.distributed.launcher_claims import (
    check_launcher,
    check_shell,
    forces_cpu,
    launcher_problems,
    rank,
    world_size,
)

OF_TORCHRUN = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
ORDERLY = {
    "no launcher": {},
    "torchrun": OF_TORCHRUN,
    "a world of one": OF_TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    "the second of two nodes": OF_TORCHRUN | {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node0"},
    "ranks of srun by hand": {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "n"},
    "only a meeting point": {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
    "accelerate": OF_TORCHRUN | {"ACCELERATE_USE_CPU": "on", "ACCELERATE_USE_DEEPSPEED": "False"},
    "one task of SLURM": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"},
}


@pytest.mark.parametrize("case", ORDERLY)
def test_what_launchers_set_is_accepted(case):
    assert launcher_problems(ORDERLY[case]) == []


LEFT_OVER = [
    ({"WORLD_SIZE": "1"}, "WORLD_SIZE=1 in the environment, but no RANK and no MASTER_ADDR", "unset WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, "but no MASTER_ADDR", "unset RANK WORLD_SIZE"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'", "unset WORLD_SIZE"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE=''", "unset WORLD_SIZE"),
    ({"WORLD_SIZE": "0"}, "from 1 up", "unset WORLD_SIZE"),
    ({"RANK": "-1"}, "RANK='-1'", "unset RANK"),
    ({"RANK": "1"}, "RANK=1 in the environment, but no WORLD_SIZE", "unset RANK"),
    (OF_TORCHRUN | {"RANK": "2"}, "RANK=2 in the environment, but WORLD_SIZE=2", "unset RANK WORLD_SIZE"),
    (OF_TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2", "unset RANK"),
    (OF_TORCHRUN | {"MASTER_PORT": "0"}, "torchrun --master-port 0", "use --standalone, else unset RANK"),
    (OF_TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT='http'", "unset RANK"),
    ({"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4", "unset LOCAL_WORLD_SIZE"),
    ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU='maybe'", "unset ACCELERATE_USE_CPU"),
    ({"ACCELERATE_USE_DEEPSPEED": "2"}, "ACCELERATE_USE_DEEPSPEED='2'", "unset ACCELERATE_USE_DEEPSPEED"),
    ({"SLURM_STEP_NUM_TASKS": "4(x2)"}, "SLURM_STEP_NUM_TASKS='4(x2)'", "unset SLURM_STEP_NUM_TASKS"),
    ({"OMPI_COMM_WORLD_SIZE": "none"}, "OMPI_COMM_WORLD_SIZE='none'", "unset OMPI_COMM_WORLD_SIZE"),
]


@pytest.mark.parametrize(("environ", "words", "mend"), LEFT_OVER)
def test_a_left_over_variable_is_named_with_the_mend(environ, words, mend):
    with pytest.raises(BadInput) as error:
        check_launcher(environ)
    assert words in str(error.value) and mend in str(error.value)


@pytest.mark.parametrize("environ", [environ for environ, *_ in LEFT_OVER])
def test_the_trainer_says_so_and_ends_with_2(environ, monkeypatch, tmp_path, tiny_bert, tiny_shards, capsys):
    """os._exit stands for a rank that ends, and a rank that others may speak for still speaks."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    try:
        code = train(["--config", str(write_run(tmp_path, tiny_bert, tiny_shards))])
    except SystemExit as end:
        code = end.code
    assert code == 2 and "unset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_numbers_that_cannot_be_read_are_no_traceback_before_they_are_named(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert (rank(), world_size()) == (0, 1)


@pytest.mark.parametrize(("value", "expected"), [("on", True), ("T", True), ("yes", True), ("0", False), ("", False)])
def test_the_cpu_is_forced_by_the_words_that_accelerate_takes(value, expected):
    assert forces_cpu({"ACCELERATE_USE_CPU": value}) is expected


HANGS = [
    ("cpu", {"WORLD_SIZE": "2", "RANK": "1"}, "unset RANK WORLD_SIZE"),
    ("cpu", OF_TORCHRUN, "the one process of this engine would wait"),
    ("cpu", {"WORLD_SIZE": "1"}, "unset WORLD_SIZE"),
    ("ddp", {"PET_NNODES": "2"}, "PET_NNODES=2 in the environment"),
    ("ddp", {"PET_NNODES": "1:4"}, "unset PET_NNODES"),
    ("ddp", {"PET_NODE_RANK": "1"}, "unset PET_NODE_RANK"),
    ("ddp", {"PET_MASTER_ADDR": "10.0.0.9"}, "unset PET_MASTER_ADDR"),
    ("ddp", {"PET_RDZV_ENDPOINT": "node0:29400"}, "unset PET_RDZV_ENDPOINT"),
]


@pytest.mark.parametrize(("engine", "environ", "words"), HANGS)
def test_launch_run_names_what_would_make_its_ranks_wait(
    engine, environ, words, monkeypatch, tmp_path, tiny_bert, tiny_shards, capsys
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    run_file = write_run(tmp_path, tiny_bert, tiny_shards)
    assert launch(["run", "--config", str(run_file), "--engine", engine, "--dry-run", "train.device=cpu"]) == 2
    assert words in capsys.readouterr().err


HARMLESS = [
    (False, False, {"WORLD_SIZE": "2", "RANK": "1"}),  # torchrun sets its own
    (False, False, {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "127.0.0.1", "PET_MAX_RESTARTS": "3"}),
    (False, True, {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "node0"}),  # our flags state them
    (True, False, OF_TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}),
    (True, False, {"PET_NNODES": "2"}),  # no torchrun reads it
]


@pytest.mark.parametrize(("one_process", "several_nodes", "environ"), HARMLESS)
def test_variables_that_reach_no_rank_are_let_be(one_process, several_nodes, environ):
    check_shell(one_process, several_nodes, environ)


def test_a_rank_that_waits_says_for_whom(monkeypatch, capsys):
    import time

    from trainer.engine import start

    monkeypatch.setattr(start, "SILENCE", 0.05)
    for name, value in OF_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    said = ""
    with start.says_what_it_waits_for(30.0):
        end = time.monotonic() + 60
        while not said and time.monotonic() < end:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert "rank 1 of 2 waits for the others at 127.0.0.1:29500, for up to 30 minutes" in said
    assert "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT" in said


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("value", ["9" * 4400, "\u00b2", "1e3", "", "-1"])
def test_what_is_no_number_of_processes_is_said_whatever_it_is(monkeypatch, name, value):
    (problem,) = launcher_problems({name: value})
    assert problem.startswith(f"{name}=") and problem.endswith(f"unset {name}")
    monkeypatch.setenv(name, value)
    assert (rank(), world_size()) == (0, 1)
