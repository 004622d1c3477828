"""Files that a new shard folder may replace on this disk. In a store: remote/test_copies.py."""

import json
import os
import shutil

import pytest

from data_prep.common.errors import Failed
from data_prep.sharding import build
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from data_prep.shards.target import SIGNS, is_unfinished, is_written, names_in
from tests.unit.data_prep.helpers import documents, run, write_records
from tests.unit.data_prep.sharding.test_build import contents


@pytest.fixture
def rows(tmp_path):
    return write_records(tmp_path / "in.jsonl", documents(20))


def test_every_file_that_is_written_is_known(rows, tmp_path):
    shard([rows], tmp_path / "s", num_shards=2, eval_fraction=0.4)
    names = names_in(tmp_path / "s")
    assert names == {str(path) for path in contents(tmp_path / "s")} and all(map(is_written, names))
    assert not is_unfinished(names) and is_unfinished(names - {"manifest.json"})
    assert is_written("train/data-123456-of-123457.arrow") and is_written("train.tokens")
    assert not is_written("test/data-00000-of-00001.arrow") and not is_written("train/data-00000-of-00001.arrow.gz")


def test_an_input_folder_around_the_output_is_refused(rows, tmp_path, capsys):
    shard([rows], tmp_path / "s")
    code, _, err = run(capsys, "shard", tmp_path / "s", "--output", tmp_path / "s" / "more")
    assert code == 2 and f"lies in the input {tmp_path / 's'}; choose another folder" in err
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "s" / "more", "--tokenizer", tmp_path / "s")
    assert code == 2 and "has no tokenizer.json" in err and "lies in" not in err


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "names, says",
    [
        (["train/gold.parquet"], "holds other files, such as train/gold.parquet"),
        (
            ["train.rows", "train/data-00000-of-00001.arrow", "eval/notes/a.txt"],
            "holds other files, such as eval/notes",
        ),
        (["manifest.json", "notes.txt"], "holds other files, such as notes.txt"),
        (["manifest.json"], "holds files that may be of another dataset, such as manifest.json"),
        (["dataset_dict.json", "train/state.json"], "holds files that may be of another dataset, such as dataset_dict"),
    ],
)
def test_a_folder_with_files_of_another_is_not_replaced(rows, tmp_path, capsys, names, says, flags):
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text('{"files": [], "schema_version": 1}')
    before = contents(tmp_path / "data")
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "data", *flags)
    assert code == 2 and f"--output {tmp_path / 'data'}: {says}" in err, err
    assert contents(tmp_path / "data") == before


def test_files_that_an_earlier_version_or_datasets_wrote_there_are_replaced_on_request(rows, tmp_path, capsys):
    shard([rows], tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    (tmp_path / "s" / "train.rows").rename(tmp_path / "s" / "train.keys")
    manifest |= {"schema_version": 1, "files": [*manifest["files"], {"path": "train.keys"}]}
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "s" / "train" / "cache-0a1b2c3d.arrow").write_text("of a filter")
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "s")
    assert code == 2 and "is a finished shard folder; choose another folder or add --overwrite" in err
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "s", "--overwrite")
    assert code == 0 and all(map(is_written, names_in(tmp_path / "s"))), err


def test_a_partial_copy_of_shards_is_no_data(rows, tmp_path, capsys):
    """Its eval rows would be trained on."""
    shard([rows], tmp_path / "s", eval_fraction=0.4)
    for name in ("manifest.json", *SIGNS):
        (tmp_path / "s" / name).unlink(missing_ok=True)
    code, _, err = run(capsys, "compose", tmp_path / "s", "--output", tmp_path / "o.jsonl")
    assert code == 2 and "has no manifest.json, so it is unfinished or a partial copy" in err
    code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "s")
    assert code == 2 and "choose another folder, or delete this one" in err


def test_a_link_to_the_output_stays_and_the_folder_that_it_names_is_replaced(rows, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "disk" / "shards")
    for more in ([], ["--overwrite"], ["--overwrite", "--seed", 1]):
        code, _, err = run(capsys, "shard", rows, "--output", tmp_path / "s", "--workers", 1, *more)
        assert code == 0, err
    assert (tmp_path / "s").is_symlink() and open_shards(tmp_path / "s").manifest["split"]["seed"] == 1
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["shards"]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "disk", "s"}


def test_a_link_in_the_place_of_the_folder_that_is_replaced_does_not_end_a_run(rows, tmp_path):
    shard([rows], tmp_path / "s")
    (tmp_path / "kept").mkdir()
    (tmp_path / ".s.replaced").symlink_to(tmp_path / "kept")
    shard([rows], tmp_path / "s", overwrite=True)
    assert (tmp_path / "kept").is_dir() and not (tmp_path / ".s.replaced").is_symlink()


def test_what_a_run_reads_besides_its_inputs_is_not_replaced(rows, tmp_path, capsys):
    made = tmp_path / "s"
    shard([rows], made)
    before = contents(made)
    flags = "--overwrite", "--exclude", made / "eval", "--tokenizer", made / "train"
    code, _, err = run(capsys, "shard", rows, "--output", made, *flags)
    assert code == 2
    for name in ("eval", "train"):
        assert f"--output {made}: holds the input {made / name}; choose another folder" in err
    assert contents(made) == before


def test_a_second_name_of_an_input_is_seen(rows, tmp_path, capsys, monkeypatch):
    """A second mount, or a disk that takes S for s."""
    shard([rows], tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "S")
    real = os.path.samefile
    monkeypatch.setattr(os.path, "samefile", lambda *paths: real(*(str(path).replace("/S", "/s") for path in paths)))
    for source in (tmp_path / "s", tmp_path / "s" / "train"):
        code, _, err = run(capsys, "shard", source, "--output", tmp_path / "S", "--overwrite")
        assert code == 2 and f"--output {tmp_path / 'S'}: holds the input {source}" in err
    code, _, err = run(capsys, "shard", tmp_path / "s", "--output", tmp_path / "S" / "more")
    assert code == 2 and f"lies in the input {tmp_path / 's'}" in err


def test_a_damaged_manifest_of_ours_is_replaced(rows, tmp_path):
    shard([rows], tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("{")
    shard([rows], tmp_path / "s", overwrite=True)
    assert open_shards(tmp_path / "s").manifest["rows"]


def test_a_second_run_ends_and_the_first_is_undisturbed(rows, tmp_path, monkeypatch, capsys):
    real, second = build.write_manifest, []

    def meanwhile(*arguments):
        second.append(run(capsys, "shard", rows, "--output", tmp_path / "new", "--workers", 1))
        return real(*arguments)

    monkeypatch.setattr(build, "write_manifest", meanwhile)
    shard([rows], tmp_path / "new")
    ((code, _, err),) = second
    assert code == 1 and err.endswith("new: another process writes there; wait for its end, or name another output\n")
    assert open_shards(tmp_path / "new").manifest["rows"] and len(list(tmp_path.iterdir())) == 2


def test_files_that_appear_while_a_run_works_are_kept(rows, tmp_path, monkeypatch):
    real = build.write_manifest

    def meanwhile(*arguments):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "notes.txt").write_text("precious")
        return real(*arguments)

    monkeypatch.setattr(build, "write_manifest", meanwhile)
    with pytest.raises(Failed, match="new: was changed while this run worked: it holds other files, such as notes.txt"):
        shard([rows], tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]
