"""launch run --module: a command that embeds, on ranks."""

import os

import pytest

from launch.__main__ import main


@pytest.fixture
def started(monkeypatch):
    """The command lines that replace this process."""
    lines: list = []
    monkeypatch.setattr(os, "execvpe", lambda file, argv, env: lines.append((argv, env)))
    return lines


def test_two_ranks_get_the_commands_own_flags(started):
    own = ["--model", "M", "--data", "SET", "--device", "cpu"]
    assert main(["run", "--module", "trainer.evaluate", "--engine", "ddp", "--processes", "2", "--", *own]) == 0
    ((argv, env),) = started
    assert argv[argv.index("--num_processes") + 1] == "2"
    assert argv[-8:] == ["-m", "trainer.evaluate", *own]
    assert env["ACCELERATE_USE_CPU"] == "true"


def test_one_process_needs_no_launcher_and_a_dry_run_starts_nothing(started, capsys):
    command = ["run", "--module", "trainer.search", "--engine", "cpu"]
    assert main([*command, "--", "a query", "--model", "M"]) == 0
    assert started[0][0][1:] == ["-m", "trainer.search", "a query", "--model", "M"]
    assert main([*command, "--dry-run", "--", "q"]) == 0
    assert len(started) == 1 and "-m trainer.search q" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--module", "trainer.evaluate", "--config", "r.yaml", "--resume"], "2 problems"),
        (["--module", "trainer.evaluate", "--engine", "zero2"], "--engine zero2: each rank"),
        ([], "name what is run: --config RUN.yaml, or --module M"),
    ],
)
def test_what_does_not_fit_is_refused(started, capsys, flags, words):
    assert main(["run", *flags]) == 2
    assert words in capsys.readouterr().err and not started
