"""Runs that are stopped, killed, starved or fed nonsense: what stays on disk, and that the rest goes on exactly."""

import json
import os
import signal
import time
from itertools import zip_longest
from pathlib import Path

import psutil
import pytest

from tests import forked, tiny
from tests.end_to_end.runs import digest, events, losses, write_run
from tests.launching import ROOT, free_port, run

EPOCHS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """82 train rows: five batches of 16, the last of 2."""
    return tiny.shards(tmp_path_factory.mktemp("data") / "shards", 82)


def flags(run_file: Path, engine: str, *more: str) -> list[str]:
    return ["-m", "trainer", "--config", str(run_file), "--engine", engine, *more]


def group(run_file: Path, engine: str, *more: str, **extra: str) -> list[forked.Forked]:
    """The ranks of a run, without a launcher: one on cpu, else two."""
    argv = flags(run_file, engine, *more)
    if engine == "cpu":
        return [forked.start(argv, ROOT, merged=True, **extra)]
    return forked.ranks(2, argv, ROOT, merged=True, **extra)


def finish(run_file: Path, engine: str, *more: str, timeout: float = 240, **extra: str) -> str:
    """Runs to a good end; returns what was said."""
    ranks = group(run_file, engine, *more, **extra)
    code = forked.wait_for_all(ranks, timeout)
    said = "".join(rank.stdout for rank in ranks)
    assert code == 0, said[-3000:]
    return said


def supervised(run_file: Path, *more: str) -> forked.Forked:
    """`launch run --max-restarts` on ddp, under accelerate and torchrun."""
    argv = ["-m", "launch", "run", "--config", str(run_file), "--engine", "ddp", "--processes", "2", *more]
    return forked.start(argv, ROOT, merged=True)


def wait_for(reached, process: forked.Forked, seconds: float = 120) -> None:
    """Waits until reached() is true, while the process is alive."""
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "not reached"
        time.sleep(0.01)


def steps_logged(out: Path) -> int:
    try:
        return (out / "logs.jsonl").read_text().count('"event": "step"')
    except FileNotFoundError:
        return 0


def trainers(run_file: Path) -> list[psutil.Process]:
    """Processes that torchrun started for the ranks of a run; killed, they take their ranks with them."""
    every = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    of_run = [(p, line) for p, line in every if {"trainer", str(run_file)} <= {*line}]
    return [p for p, line in of_run if not any("launch" in part for part in line)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_bert, shards):
    """engine -> output of a run that nobody disturbed."""
    made = {}

    def of(engine: str) -> Path:
        if engine not in made:
            folder = tmp_path_factory.mktemp(engine)
            finish(write_run(folder, tiny_bert, shards, epochs=EPOCHS), engine)
            made[engine] = folder / "out"
        return made[engine]

    return of


@pytest.mark.parametrize(("engine", "number"), [("cpu", signal.SIGTERM), ("ddp", signal.SIGUSR1)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_rest_is_exact(
    engine, number, tmp_path, tiny_bert, shards, uninterrupted
):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    ranks = group(run_file, engine)
    wait_for(lambda: steps_logged(out) >= 3, ranks[0])
    ranks[-1].send_signal(number)
    said = "".join(rank.communicate(timeout=120)[0] for rank in ranks)
    marker = json.loads((out / "requeue.json").read_text())
    name = signal.Signals(number).name
    assert marker == {"signal": name, "step": len(losses(out))}, said[-2000:]
    assert f"stopped by {name} after step {marker['step']}" in said
    assert [rank.returncode for rank in ranks] == [75] * len(ranks)
    assert marker["step"] < EPOCHS * 6, "it was stopped, not finished"

    finish(run_file, engine, "--resume")
    assert not (out / "requeue.json").exists()
    assert losses(out) == losses(uninterrupted(engine))
    assert digest(out) == digest(uninterrupted(engine))


def test_killed_while_it_writes_checkpoints_in_the_background(tmp_path, tiny_bert, shards, uninterrupted):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    more = ("checkpoint.every_steps=1", "--resume")
    for kill_at in (2, 9):
        ranks = group(run_file, "ddp", *more)
        wait_for(lambda at=kill_at: steps_logged(out) >= at, ranks[0])
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    finish(run_file, "ddp", *more)
    assert losses(out) == losses(uninterrupted("ddp"))
    assert digest(out) == digest(uninterrupted("ddp"))
    assert len(list(out.glob("checkpoint-step-*"))) <= 2
    assert not list(out.glob(".writing-*"))


NONSENSE = """
def poisoned(query_embeds, positive_embeds, batch):
    loss = (query_embeds * positive_embeds).sum(dim=1).mean()
    return loss * float("nan") if {bad}.intersection(batch.row_ids.tolist()) else loss
"""


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_gradient_that_is_not_finite_is_skipped_with_its_rows(engine, tmp_path, tiny_bert, shards):
    (tmp_path / "poison.py").write_text(NONSENSE.format(bad="{7}"))
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=2), tmp_path / "out"
    more = ("loss.name=poison:poisoned", "optim.max_grad_norm=1.0")
    finish(run_file, engine, *more, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    skipped = [event for event in events(out) if event.get("skipped")]
    assert [event["epoch"] for event in skipped] == [1, 2]
    assert all(7 in event["row_ids"] for event in skipped)
    assert all(event["loss"] is not None for event in events(out) if not event.get("skipped"))


def test_a_run_that_has_diverged_stops_at_its_last_good_state(tmp_path, tiny_bert, shards):
    (tmp_path / "poison.py").write_text(NONSENSE.format(bad="set(range(100))"))
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=2), tmp_path / "out"
    argv = flags(run_file, "cpu", "loss.name=poison:poisoned", "train.max_skipped_steps=3")
    done = run(*argv, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 1
    assert "3 steps in a row" in done.stderr and "checkpoint-step-0" in done.stderr and "Traceback" not in done.stderr
    assert (out / "checkpoint-step-0" / "complete.json").exists()


def ranks(run_file: Path, overrides: list[list[str]], *environs: dict[str, str]) -> list[forked.Forked]:
    """Ranks started by hand, each with overrides (and environment variables) of its own."""
    port = str(free_port())
    started = []
    for (rank, own), environ in zip_longest(enumerate(overrides), environs, fillvalue={}):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(overrides), "LOCAL_WORLD_SIZE": len(overrides)}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", **environ}
        argv = ["-m", "trainer", "--config", str(run_file), *own]
        started.append(forked.start(argv, ROOT, merged=True, **{key: str(value) for key, value in given.items()}))
    return started


def test_ranks_that_disagree_refuse_to_start(tmp_path, tiny_bert, shards):
    run_file = write_run(tmp_path, tiny_bert, shards)
    other = tiny.shards(tmp_path / "other", 82, seed=1)
    started = ranks(run_file, [["train.seed=0"], ["train.seed=1", f"data.train={other}"]])
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert "rank(s) 1 have another run file than rank 0" in said[0]
    assert "rank(s) 1 have another data than rank 0" in said[0]
    assert "nothing was trained" in said[0] and not (tmp_path / "out").exists()


def test_a_rank_with_another_version_of_a_package_is_named(tmp_path, tiny_bert, shards):
    planted = tmp_path / "other" / "safetensors-0.0.1.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.0.1\n")
    other = {"PYTHONPATH": f"{planted.parent}{os.pathsep}{ROOT}"}
    started = ranks(write_run(tmp_path, tiny_bert, shards), [[], []], {}, other)
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert "rank(s) 1 have another library version than rank 0 (safetensors" in said[0] and "0.0.1 on rank 1" in said[0]
    assert "constraints file" in said[0] and not (tmp_path / "out").exists()


def test_a_rank_that_hangs_is_named_by_the_others_in_time(tmp_path, tiny_bert, shards):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=500, timeout_minutes=0.2), tmp_path / "out"
    started = ranks(run_file, [[], []])
    wait_for(lambda: steps_logged(out) >= 3, started[0])
    started[1].send_signal(signal.SIGSTOP)
    try:
        said = started[0].communicate(timeout=120)[0]
    finally:
        started[1].kill()
        started[1].communicate()
    assert started[0].returncode == 1, said[-3000:]
    assert "rank 0 lost the others in its collective" in said and "rank 1 after step" in said
    assert "Traceback" not in said


def test_a_rank_that_dies_is_named_by_the_others(tmp_path, tiny_bert, shards):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=200), tmp_path / "out"
    started = ranks(run_file, [[], []])
    wait_for(lambda: steps_logged(out) >= 3, started[0])
    started[1].kill()
    said = started[0].communicate(timeout=120)[0]
    assert started[0].returncode == 1, said[-3000:]
    assert "rank 0 lost the others in its collective" in said and "rank 1 after step" in said
    assert "Traceback" not in said
    started[1].communicate()


def test_a_supervised_run_goes_on_after_a_rank_was_killed(tmp_path, tiny_bert, shards, uninterrupted):
    """And stops its ranks whole when it is asked to: tests/unit/launch/test_supervise.py."""
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    process = supervised(run_file, "checkpoint.every_steps=2", "--max-restarts", "2")
    wait_for(lambda: steps_logged(out) >= 5, process)
    trainers(run_file)[-1].kill()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    assert "restart 1 of 2, from step" in said
    assert losses(out) == losses(uninterrupted("ddp"))
    assert digest(out) == digest(uninterrupted("ddp"))
