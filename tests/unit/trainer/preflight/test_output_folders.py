"""Output folders: runs that are not resumed there, and disks that are too small or read-only."""

from types import SimpleNamespace

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from tests.disks import make_read_only, small_disk
from tests.unit.trainer.preflight.helpers import other_run
from trainer.__main__ import main as train_main
from trainer.config.loading import load_config
from trainer.planner.plan import PLAN_VERSION
from trainer.preflight import output
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs
from trainer.run_dir.record import check_resumable, describe_run


@pytest.mark.parametrize("record", ["{}", "not json", '{"config": {}, "data_fingerprint": "x"}'])
def test_resuming_a_folder_with_a_broken_record(run, capsys, record):
    other_run(run)
    (run.folder / "out" / "run.json").write_text(record)
    assert train_main(["--config", run.write(), "--resume"]) == 2
    assert "no record of a run" in capsys.readouterr().err


def test_a_run_that_began_with_another_batch_plan_is_not_resumed(run):
    """Its steps so far were other batches than this version would have given it."""
    config = load_config(run.write())
    (run.folder / "out").mkdir()
    for version, about in ((1, {}), (PLAN_VERSION + 1, {"version": PLAN_VERSION + 1})):
        write_json(run.folder / "out" / "run.json", describe_run(config, {}, "f", about))
        with pytest.raises(BadInput, match=f"began with version {version} of the batch plan"):
            check_resumable(run.folder / "out", config, "f")
    write_json(run.folder / "out" / "run.json", describe_run(config, {}, "f", {"version": PLAN_VERSION}))
    check_resumable(run.folder / "out", config, "f")


def test_a_run_is_not_resumed_on_other_data(run):
    config = load_config(run.write())
    (run.folder / "out").mkdir()
    write_json(run.folder / "out" / "run.json", describe_run(config, {}, "f", {"version": PLAN_VERSION}))
    with pytest.raises(BadInput, match="other data than the run began with"):
        check_resumable(run.folder / "out", config, "another")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_disk_too_small_is_told_beforehand(run, capsys, disk):
    run.values["output_dir"] = str(disk / "out")
    assert train_main(["--config", run.write()]) == 2
    assert "GiB free" in capsys.readouterr().err


def test_the_weights_of_a_hub_id_count_as_well(run, tiny_bert, monkeypatch):
    run.values["model"]["path"] = "org/tiny"
    monkeypatch.setattr("trainer.preflight.inputs.fetch", lambda path, with_code=False: str(tiny_bert))
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**16))
    with pytest.raises(BadInput, match="0.0 GiB free below .*, but 1 checkpoints and the final model need about"):
        check_run(Inputs(load_config(run.write())), resume=False)


def test_a_read_only_disk_is_told_beforehand(run, capsys, disk):
    make_read_only(disk)
    run.values["output_dir"] = str(disk / "out")
    assert train_main(["--config", run.write()]) == 2
    assert "cannot write below" in capsys.readouterr().err
