"""Runs that are stopped, killed, starved or fed nonsense: what stays on disk, and that the rest goes on exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.end_to_end.runs import digest, events, losses, write_run
from tests.launching import ROOT, environment, free_port, run

EPOCHS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """82 train rows: five batches of 16, the last of 2."""
    return tiny.shards(tmp_path_factory.mktemp("data") / "shards", 82)


def command(run_file: Path, engine: str, *more: str) -> list[str]:
    flags = ["--engine", engine, *(["--processes", "2"] if engine != "cpu" else [])]
    return [sys.executable, "-m", "launch", "run", "--config", str(run_file), *flags, *more]


def start(argv: list[str], **extra: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(argv, env=environment(**extra), cwd=ROOT, start_new_session=True, **pipes)


def wait_for(reached, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until reached() is true, while the process is alive."""
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


def trainers(process: subprocess.Popen) -> list[psutil.Process]:
    """The ranks below a launcher, or the process itself."""
    below = [p for p in psutil.Process(process.pid).children(recursive=True) if "trainer" in p.cmdline()]
    return [p for p in below if not any("launch" in part for part in p.cmdline())] or [psutil.Process(process.pid)]


def whole_run(folder: Path, model: Path, shards: Path, engine: str) -> Path:
    folder.mkdir(parents=True)
    run_file = write_run(folder, model, shards, epochs=EPOCHS)
    done = subprocess.run(command(run_file, engine), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_bert, shards):
    """engine -> output of a run that nobody disturbed."""
    made = {}

    def of(engine: str) -> Path:
        if engine not in made:
            made[engine] = whole_run(tmp_path_factory.mktemp("whole") / engine, tiny_bert, shards, engine)
        return made[engine]

    return of


@pytest.mark.parametrize(("engine", "number"), [("cpu", signal.SIGTERM), ("ddp", signal.SIGUSR1)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_rest_is_exact(
    engine, number, tmp_path, tiny_bert, shards, uninterrupted
):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    process = start(command(run_file, engine))
    wait_for(lambda: steps_logged(out) >= 3, process)
    trainers(process)[-1].send_signal(number)
    said, _ = process.communicate(timeout=120)
    marker = json.loads((out / "requeue.json").read_text())
    name = signal.Signals(number).name
    assert marker == {"signal": name, "step": len(losses(out))}, said[-2000:]
    assert f"stopped by {name} after step {marker['step']}" in said
    assert process.returncode == 75 if engine == "cpu" else process.returncode != 0
    assert marker["step"] < EPOCHS * 6, "it was stopped, not finished"

    done = run("-m", "launch", "run", *command(run_file, engine, "--resume")[4:])
    assert done.returncode == 0, done.both[-3000:]
    assert not (out / "requeue.json").exists()
    assert losses(out) == losses(uninterrupted(engine))
    assert digest(out) == digest(uninterrupted(engine))


def test_killed_while_it_writes_checkpoints_in_the_background(tmp_path, tiny_bert, shards, uninterrupted):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    argv = command(run_file, "ddp", "checkpoint.every_steps=1", "--resume")
    for kill_at in (2, 9):
        process = start(argv)
        wait_for(lambda at=kill_at: steps_logged(out) >= at, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for left in psutil.process_iter(["cmdline"]):  # launchers start sessions of their own
            if str(run_file) in (left.info["cmdline"] or []):
                left.kill()
    done = run(*argv[1:])
    assert done.returncode == 0, done.both[-3000:]
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
    argv = command(run_file, engine, "loss.name=poison:poisoned", "optim.max_grad_norm=1.0")
    done = subprocess.run(argv, env=environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}, cwd=ROOT,
        capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    skipped = [event for event in events(out) if event.get("skipped")]
    assert [event["epoch"] for event in skipped] == [1, 2]
    assert all(7 in event["row_ids"] for event in skipped)
    assert all(event["loss"] is not None for event in events(out) if not event.get("skipped"))


def test_a_run_that_has_diverged_stops_at_its_last_good_state(tmp_path, tiny_bert, shards):
    (tmp_path / "poison.py").write_text(NONSENSE.format(bad="set(range(100))"))
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=2), tmp_path / "out"
    argv = command(run_file, "cpu", "loss.name=poison:poisoned", "train.max_skipped_steps=3")
    env = environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "3 steps in a row" in done.stderr and "checkpoint-step-0" in done.stderr and "Traceback" not in done.stderr
    assert (out / "checkpoint-step-0" / "complete.json").exists()


def ranks(run_file: Path, overrides: list[list[str]], *environs: dict[str, str]) -> list[subprocess.Popen]:
    """Ranks started by hand, each with overrides (and environment variables) of its own."""
    port = str(free_port())
    started = []
    for (rank, own), environ in zip_longest(enumerate(overrides), environs, fillvalue={}):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(overrides), "LOCAL_WORLD_SIZE": len(overrides)}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-m", "trainer", "--config", str(run_file), *own]
        started.append(start(argv, **environ, **{key: str(value) for key, value in given.items()}))
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
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=500, timeout_minutes=0.5), tmp_path / "out"
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
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=EPOCHS), tmp_path / "out"
    process = start(command(run_file, "ddp", "checkpoint.every_steps=2", "--max-restarts", "2"))
    wait_for(lambda: steps_logged(out) >= 5, process)
    trainers(process)[-1].kill()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    assert "restart 1 of 2, from step" in said
    assert losses(out) == losses(uninterrupted("ddp"))
    assert digest(out) == digest(uninterrupted("ddp"))


def test_a_supervisor_that_is_asked_to_stop_stops_its_ranks_whole(tmp_path, tiny_bert, shards):
    run_file, out = write_run(tmp_path, tiny_bert, shards, epochs=500), tmp_path / "out"
    process = start(command(run_file, "ddp", "--max-restarts", "2"))
    wait_for(lambda: steps_logged(out) >= 3, process)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said[-3000:]
    marker = json.loads((out / "requeue.json").read_text())
    assert marker == {"signal": "SIGTERM", "step": len(losses(out))}
    assert (out / f"checkpoint-step-{marker['step']}" / "complete.json").exists() and "restart" not in said


def test_a_supervised_run_that_gets_no_further_is_given_up(tmp_path, tiny_bert, shards):
    (tmp_path / "broken.py").write_text("def loss(queries, positives, batch):\n    raise RuntimeError('a bug')\n")
    run_file = write_run(tmp_path, tiny_bert, shards)
    argv = command(run_file, "cpu", "loss.name=broken:loss", "--max-restarts", "9")
    env = environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed 3 times without a checkpoint after step 0" in done.stderr
