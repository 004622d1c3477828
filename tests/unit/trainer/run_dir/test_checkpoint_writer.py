"""Checkpoints on disk: damage of any kind is seen, the one before is used, and none that a run needs is removed."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_prep.common.errors import BadInput, Failed
from trainer.config.sections import CheckpointConfig
from trainer.distributed.collectives import World
from trainer.run_dir.checkpoint_writer import Clock, Writer, copy_of, sweep, write_output
from trainer.run_dir.layout import MARKER, TrainState, best_models, damage, kept_model, newest, numbered, to_resume
from trainer.run_dir.log import RunLog


def state(step: int, epoch: int = 0) -> TrainState:
    return TrainState(step, epoch, step, 0, {})


def writer(run_dir: Path, **keep) -> Writer:
    weights = {"w": torch.arange(4.0)}
    engine = SimpleNamespace(world=World(), weights=lambda: weights, moments=lambda: {"w": torch.zeros(4)})
    return Writer(
        engine,
        run_dir,
        CheckpointConfig(**keep),
        lambda _: lambda at, found: save_file(found, at / "model.safetensors"),
    )


def saved(made: Writer, *steps: int) -> set[str]:
    for step in steps:
        made.save(f"checkpoint-step-{step}", state(step))
    return {path.name for path in made.run_dir.iterdir()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped byte of the weights": lambda folder: flip(folder / "model.safetensors", -1),
    "a truncated file": lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
    "a missing file": lambda folder: (folder / "state" / "optimizer.safetensors").unlink(),
    "no marker": lambda folder: (folder / MARKER).unlink(),
    "a marker that is a list": lambda folder: (folder / MARKER).write_text("[]"),
    "a marker without sizes": lambda folder: (folder / MARKER).write_text('{"files": {"model.safetensors": {}}}'),
    "a state that is no JSON": lambda folder: (folder / "state" / "trainer.json").write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_named_and_the_one_before_is_used(tmp_path, name):
    saved(writer(tmp_path), 10, 20)
    DAMAGES[name](tmp_path / "checkpoint-step-20")
    folder, passed = newest(tmp_path)
    assert folder == tmp_path / "checkpoint-step-10"
    assert len(passed) == 1 and passed[0].startswith("checkpoint-step-20: ")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved(writer(folder), 10)
    return folder / "checkpoint-step-10"


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_anywhere_never_passes_and_never_raises(one, data):
    """In the marker it may be in a space or a name, where any answer but an error will do."""
    path = data.draw(st.sampled_from(sorted(path for path in one.rglob("*") if path.is_file())))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, at)
    try:
        assert damage(one) or path.name == MARKER
    finally:
        flip(path, at)
    assert damage(one) is None


def test_where_every_checkpoint_is_damaged_the_run_is_not_begun_anew_over_them(tmp_path):
    saved(writer(tmp_path), 10, 20)
    for step in (10, 20):
        flip(tmp_path / f"checkpoint-step-{step}" / "model.safetensors", -1)
    with pytest.raises(BadInput) as refused:
        to_resume(tmp_path)
    assert [problem.split(":")[1].split("/")[-1] for problem in refused.value.problems] == [
        "checkpoint-step-20",
        "checkpoint-step-10",
    ]
    assert "remove these folders to begin anew" in str(refused.value)


def test_what_a_kill_left_unfinished_is_no_reason_to_refuse(tmp_path):
    """A checkpoint is removed marker first; one that is being written has another name."""
    made = writer(tmp_path)
    saved(made, 10)
    (tmp_path / "checkpoint-step-10" / MARKER).unlink()
    assert to_resume(tmp_path) == (None, [f"checkpoint-step-10: unfinished (no {MARKER})"])
    saved(made, 5)
    assert to_resume(tmp_path)[0] == tmp_path / "checkpoint-step-5"


KILLED = """
import os, sys
from pathlib import Path
from trainer.run_dir import checkpoint_writer
renamed = os.replace
def replace(source, target):
    if Path(source).name == sys.argv[2]:
        os._exit(9)
    renamed(source, target)
checkpoint_writer.os.replace = replace
write = lambda folder, _: (folder / "model.safetensors").write_text("new")
checkpoint_writer.write(Path(sys.argv[1]), {}, {}, None, write)
"""


@pytest.mark.parametrize("old", [True, False])
def test_a_kill_between_the_renames_leaves_the_new_folder(tmp_path, old):
    """The older one is put aside first; without one there is a single rename."""
    target = tmp_path / "final"
    if old:
        target.mkdir()
        (target / "model.safetensors").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), ".writing-final"])
    assert done.returncode == 9 and not target.exists()
    sweep(tmp_path)
    assert damage(target) is None and (target / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_folder_put_aside_comes_back_where_the_new_one_is_not_whole(tmp_path):
    for name in (".replaced-final", ".writing-final"):
        (tmp_path / name).mkdir()
    (tmp_path / ".replaced-final" / "model.safetensors").write_text("old")
    sweep(tmp_path)
    assert (tmp_path / "final" / "model.safetensors").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    made = writer(tmp_path)
    saved(made, 10)
    renamed = os.replace

    def fails(source, target):
        if ".writing-" in str(source):
            raise OSError("no")
        renamed(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(Failed, match="could not be written"):
        saved(made, 10)
    assert newest(tmp_path)[0] == tmp_path / "checkpoint-step-10" and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_moved_to_another_disk_stays_there(tmp_path):
    """The run removes its link alone."""
    made, archive = writer(tmp_path / "run", keep_steps=1), tmp_path / "archive"
    saved(made, 10)
    (tmp_path / "run" / "checkpoint-step-10").rename(archive)
    (tmp_path / "run" / "checkpoint-step-10").symlink_to(archive)
    assert saved(made, 20) == {"checkpoint-step-20"} and damage(archive) is None


def test_a_copy_of_a_best_model_under_another_name_is_not_ours(tmp_path):
    made = writer(tmp_path)
    made.save_best(120)
    (tmp_path / "best-step-120").rename(tmp_path / "best-step-120-backup")
    made.save_best(130)
    made.save("checkpoint-step-140", chose(140, 0, best=140, best_epoch=1))
    assert {path.name for path in tmp_path.iterdir()} == {"best-step-120-backup", "checkpoint-step-140"}


def test_an_output_never_replaces_what_was_put_there_meanwhile(tmp_path):
    output = tmp_path / "out"
    output.mkdir()

    def write(folder: Path) -> None:
        (folder / "weights").write_text("new")
        (output / "thesis.tex").write_text("precious")

    with pytest.raises(Failed, match="is no empty folder any more .*; the whole folder is ") as refused:
        write_output(output, write)
    assert (output / "thesis.tex").read_text() == "precious"
    left = Path(str(refused.value).split("the whole folder is ")[1].split(":")[0])
    assert damage(left) is None and (left / "weights").read_text() == "new"


def test_two_commands_with_one_output_do_not_mix_their_files(tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()

    def first(folder: Path) -> None:
        (folder / "a").write_text("first")
        write_output(output, lambda other: (other / "b").write_text("second"))
        (folder / "c").write_text("first")

    with pytest.raises(Failed, match="no empty folder any more"):
        write_output(output, first)
    assert {path.name for path in output.iterdir()} == {"b", MARKER} and damage(output) is None
    assert "another command that writes" in capsys.readouterr().err


def test_an_output_that_is_a_link_to_an_empty_folder_is_written_there(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write_output(tmp_path / "out", lambda folder: (folder / "a").write_text("new"))
    assert (tmp_path / "disk" / "a").is_file() and (tmp_path / "out").is_symlink()


def test_the_newest_are_kept(tmp_path):
    made = writer(tmp_path, keep_steps=2)
    assert saved(made, 5, 10, 15) == {"checkpoint-step-10", "checkpoint-step-15"}


def test_after_a_fall_back_what_is_written_stays(tmp_path):
    """Damaged ones ahead have higher numbers; they are no reason to remove the new ones."""
    saved(writer(tmp_path, keep_steps=2), 20, 30)
    flip(tmp_path / "checkpoint-step-30" / "model.safetensors", -1)
    flip(tmp_path / "checkpoint-step-20" / "model.safetensors", -1)
    saved(writer(tmp_path, keep_steps=1), 10, 15)
    assert newest(tmp_path)[0] == tmp_path / "checkpoint-step-15"


def test_a_run_that_goes_back_resumes_from_there(tmp_path):
    """Weights that no update changed were written further on: they are whole, and would count as progress."""
    made = writer(tmp_path)
    saved(made, 10, 20, 30)
    made.save("checkpoint-epoch-1", state(24, 1))
    made.save("checkpoint-step-10", state(10))
    made.go_back(state(10))
    assert newest(tmp_path) == (tmp_path / "checkpoint-step-10", [])


def test_of_two_after_one_step_the_one_behind_the_evaluation_is_resumed_from(tmp_path):
    """A run may be stopped between the last step of an epoch and its evaluation, and then go on."""
    made = writer(tmp_path)
    made.save("checkpoint-step-6", state(6, 0))
    made.save("checkpoint-epoch-1", state(6, 1))
    assert newest(tmp_path) == (tmp_path / "checkpoint-epoch-1", [])


def chose(step: int, epoch: int, best: int, best_epoch: int) -> TrainState:
    """A state that names the best model so far."""
    return replace(state(step, epoch), watch={"chosen": {"step": best, "epoch": best_epoch}})


def test_a_best_model_is_removed_only_once_no_checkpoint_names_it(tmp_path):
    made = writer(tmp_path)
    made.save_best(5)
    made.save("checkpoint-step-6", chose(6, 0, best=5, best_epoch=1))
    made.save_best(8)
    assert sorted(best_models(tmp_path)) == [5, 8], "a killed run goes back to step 6"
    made.save_best(9)
    assert sorted(best_models(tmp_path)) == [5, 9]
    made.save("checkpoint-step-10", chose(10, 0, best=9, best_epoch=1))
    assert sorted(best_models(tmp_path)) == [9] and kept_model(tmp_path, 9, 1, False) == (tmp_path / "best-step-9", "")


def test_a_best_model_of_a_later_step_stays_until_the_run_is_there(tmp_path):
    """A run that lost its checkpoints has made it."""
    made = writer(tmp_path)
    made.save_best(8)
    made.save_best(2)
    made.save("checkpoint-step-3", chose(3, 0, best=2, best_epoch=1))
    assert sorted(best_models(tmp_path)) == [2, 8]
    made.save("checkpoint-step-9", chose(9, 0, best=2, best_epoch=1))
    assert sorted(best_models(tmp_path)) == [2]


def test_the_checkpoint_that_is_the_only_copy_of_the_best_model_stays(tmp_path):
    made = writer(tmp_path, keep_epochs=1)
    for epoch in (1, 2, 3):
        made.save(f"checkpoint-epoch-{epoch}", chose(10 * epoch, epoch, best=10, best_epoch=1))
    assert sorted(numbered(tmp_path, "epoch")) == [1, 3]
    assert kept_model(tmp_path, 10, 1, average=False) == (tmp_path / "checkpoint-epoch-1", "")
    for step, average in ((10, True), (11, False)):  # not the weights that were measured
        assert kept_model(tmp_path, step, 1, average) == (None, f"best-step-{step}: unfinished (no {MARKER})")
    made.save_best(40)
    made.save("checkpoint-epoch-4", chose(40, 4, best=40, best_epoch=4))
    assert sorted(numbered(tmp_path, "epoch")) == [4] and sorted(best_models(tmp_path)) == [40]


def test_the_copy_of_a_model_is_whole_and_has_no_state(tmp_path):
    made = writer(tmp_path)
    made.save("checkpoint-epoch-1", state(10, 1))
    made.write_on_first(
        "final", lambda: copy_of(tmp_path / "checkpoint-epoch-1"), {"verdict.json": {"verdict": "better"}}
    )
    assert damage(tmp_path / "final") is None
    assert {path.name for path in (tmp_path / "final").iterdir()} == {"model.safetensors", "verdict.json", MARKER}
    flip(tmp_path / "final" / "verdict.json", 3)
    assert "verdict.json is not what was written" in damage(tmp_path / "final")


@pytest.mark.parametrize(
    ("every", "steps"),
    [((3, None), [3, 6, 9]), ((2.5,), [3, 5, 8, 10]), ((5, 4), [4, 5, 8, 10]), ((0.4,), [*range(1, 11)]), ((), [])],
)
def test_a_clock_by_steps(every, steps):
    assert [step for step in range(1, 11) if Clock(None, *every).due(step)] == steps


def test_a_clock_by_minutes_is_due_until_it_is_done():
    clock = Clock(5.0, 100)
    assert not clock.due(1)
    clock.last -= 301
    assert clock.due(2) and clock.due(3) and not clock.by_steps(3)
    clock.done()
    assert not clock.due(4)


def test_what_is_written_in_the_background_is_of_its_step(tmp_path):
    made, go_on = writer(tmp_path), threading.Event()
    made.prepare = lambda _: lambda at, found: go_on.wait(60) and save_file(found, at / "model.safetensors")
    made.save("checkpoint-step-1", state(1), background=True)
    made.engine.weights()["w"] += 100  # training goes on
    go_on.set()
    made.wait()
    made.close()
    assert load_file(tmp_path / "checkpoint-step-1" / "model.safetensors")["w"].tolist() == [0, 1, 2, 3]


def test_what_was_logged_after_the_checkpoint_is_put_aside(tmp_path):
    first, second = (json.dumps({"event": "step", "step": step}) + "\n" for step in (1, 2))
    (tmp_path / "logs.jsonl").write_text(first + second)
    RunLog(tmp_path, True, len(first)).close()
    (aside,) = tmp_path.glob("logs.tail-*.jsonl")
    assert (aside.read_text(), (tmp_path / "logs.jsonl").read_text()) == (second, first)


def test_a_log_shorter_than_its_checkpoint_says_is_told(tmp_path, capsys):
    (tmp_path / "logs.jsonl").write_text(json.dumps({"event": "step", "step": 1}) + "\n")
    RunLog(tmp_path, True, 1000).close()
    assert "of the 1000 bytes written before the checkpoint are gone" in capsys.readouterr().err
