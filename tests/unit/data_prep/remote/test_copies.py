"""Shard folders at URLs, with a folder of this disk in place of the store: uploads, local copies, damage."""

import errno
import json
import re
import shutil
import threading
from pathlib import Path

import pytest
from pyarrow import fs

from data_prep.common.errors import BadInput, Failed
from data_prep.remote import location as locations
from data_prep.remote.copies import local
from data_prep.remote.location import Location
from data_prep.sharding import upload
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from data_prep.shards.target import names_in
from tests.unit.data_prep.helpers import documents, run, write_records

FOLDER = Location("s3", "bucket/shards")


class Store:
    """A pyarrow filesystem whose folders need not be made, as in an object store. full: objects that may be written."""

    def __init__(self, root: Path):
        self.root, self.full = root, None
        self._inner = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def open_output_stream(self, key: str, **more):
        if self.full is not None:
            if not self.full:
                raise OSError(f"AWS Error ACCESS_DENIED for the key {SECRET}")
            self.full -= 1
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        return self._inner.open_output_stream(key, **more)


SECRET = "hunter2-5f0c"


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    made = Store(tmp_path / "store")
    monkeypatch.setattr(locations, "_filesystem", lambda scheme: made)
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return made


@pytest.fixture
def write(store, tmp_path):
    """Writes a shard folder of so many documents to FOLDER. meanwhile: called before the upload."""

    def call(count: int = 6, overwrite: bool = False, num_shards: int = 1, meanwhile=lambda: None):
        source = write_records(tmp_path / "rows.jsonl", documents(count))
        with upload.uploaded([source], FOLDER, overwrite) as folder:
            shard([source], folder, num_shards=num_shards, eval_fraction=0, overwrite=True)
            meanwhile()

    return call


def put(store: Store, *names: str) -> dict[str, bytes]:
    """Puts objects of somebody else into FOLDER; returns all that is there."""
    root = store.root / FOLDER.key
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"precious {name}")
    return files_of(root)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_is_uploaded_whole_and_opened_from_a_copy(store, write, tmp_path):
    write()
    assert not list((tmp_path / "cache" / "uploads").glob("*/*"))
    there = files_of(store.root / "bucket" / "shards")
    opened = open_shards(str(FOLDER))
    assert files_of(opened.path) == there and opened.path.parent == tmp_path / "cache" / "shards"
    assert [row.query for row in opened.split("train")] == [row.query for row in documents(6)]
    with pytest.raises(BadInput, match="is a finished shard folder; choose another folder or add --overwrite"):
        write()
    write(9, overwrite=True)
    assert open_shards(str(FOLDER)).rows("train") == 27  # another manifest, another copy
    assert opened.path.exists()


def test_the_manifest_comes_last_and_goes_first(store, write):
    write()
    manifest = store.root / "bucket/shards/manifest.json"
    store.full = 3  # the probe and two files of the new folder
    with pytest.raises(Failed) as caught:
        write(9, overwrite=True)
    assert SECRET not in str(caught.value) and "AWS_SECRET_ACCESS_KEY" in str(caught.value)
    assert not manifest.exists()
    with pytest.raises(
        BadInput, match=r"has no manifest.json, so it is no shard folder, or one whose upload did not end"
    ):
        open_shards(str(FOLDER))
    store.full = None
    write(9)
    assert manifest.exists() and open_shards(str(FOLDER)).rows("train") == 27


def test_nothing_is_made_where_the_store_refuses(store, write, tmp_path):
    store.full = 0
    with pytest.raises(Failed, match="embedfleet-write: AWS Error ACCESS_DENIED for the key .hidden.;"):
        write()
    assert not (tmp_path / "cache" / "uploads").exists()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "train/pairs.jsonl", "eval/gold.parquet", "train/data-0.arrow"])
def test_a_folder_with_an_object_of_another_is_not_replaced(store, write, name, finished):
    if finished:
        write()
    before = put(store, name)
    with pytest.raises(BadInput, match=f"holds other files, such as {name}; choose another folder"):
        write(9, overwrite=finished)
    assert files_of(store.root / FOLDER.key) == before


def test_a_plain_dataset_is_not_taken_for_an_upload_that_did_not_end(store, write):
    before = put(store, "dataset_dict.json", *(f"train/{name}" for name in ("data-00000-of-00001.arrow", "state.json")))
    with pytest.raises(BadInput, match="holds files that may be of another dataset, such as dataset_dict.json"):
        write()
    assert files_of(store.root / FOLDER.key) == before


def test_a_manifest_of_another_program_is_not_replaced(store, write):
    before = put(store, "manifest.json")
    with pytest.raises(BadInput, match="holds files that may be of another dataset, such as manifest.json"):
        write(overwrite=True)
    assert files_of(store.root / FOLDER.key) == before


def test_an_upload_that_ended_after_one_file_is_replaced_and_so_are_shards_that_are_too_many(store, write):
    store.full = 2  # the probe and a file
    with pytest.raises(Failed):
        write()
    assert len(files_of(store.root / FOLDER.key)) == 1
    store.full = None
    write(num_shards=3)
    write(overwrite=True)
    there = files_of(store.root / FOLDER.key)
    assert [name for name in there if name.startswith("train/data-")] == ["train/data-00000-of-00001.arrow"]
    assert set(there) == names_in(open_shards(str(FOLDER)).path)


def test_what_appears_while_a_run_works_is_kept(store, write):
    write(meanwhile=lambda: put(store, "train/pairs.jsonl", "train/data-00000-of-00009.arrow"))
    there = files_of(store.root / FOLDER.key)
    assert there["train/pairs.jsonl"] == b"precious train/pairs.jsonl"
    assert there["train/data-00000-of-00009.arrow"] == b"precious train/data-00000-of-00009.arrow"
    assert open_shards(str(FOLDER)).rows("train") == 18
    (store.root / FOLDER.key / "train/pairs.jsonl").unlink()
    (store.root / FOLDER.key / "train.rows").unlink()
    (store.root / FOLDER.key / "manifest.json").unlink()
    with pytest.raises(Failed, match=r"s3://bucket/shards/manifest.json: appeared while this run worked, and is kept"):
        write(meanwhile=lambda: put(store, "manifest.json"))
    there = files_of(store.root / FOLDER.key)
    assert there["manifest.json"] == b"precious manifest.json" and "train/data-00000-of-00009.arrow" in there


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "name, says",
    [
        ("shards/train/pairs.jsonl", "holds the input s3://bucket/shards/train/pairs.jsonl"),
        ("shards", "holds the input s3://bucket/shards;"),
        ("", "lies in the input s3://bucket;"),
    ],
)
def test_an_input_in_the_target_is_refused(store, write, capsys, name, says, flags):
    if name == "shards":
        write()
    before = put(store, "train/pairs.jsonl") if "/" in name else files_of(store.root)
    code, _, err = run(capsys, "shard", f"s3://bucket/{name}", "--output", FOLDER, *flags)
    assert code == 2 and f"--output {FOLDER}: {says}" in err
    assert files_of(store.root / FOLDER.key if "/" in name else store.root) == before


def test_two_runs_of_one_machine_do_not_write_to_one_url(store, write):
    refused = pytest.raises(Failed, match="another run on this machine writes there")
    with pytest.raises(KeyboardInterrupt), upload.uploaded([], FOLDER, False):
        with refused, upload.uploaded([], FOLDER, False):
            pass
        raise KeyboardInterrupt


def test_every_changed_and_missing_file_is_named_and_nothing_is_opened(store, write, tmp_path):
    write()
    root = store.root / "bucket/shards"
    arrow, rows = root / "train/data-00000-of-00001.arrow", root / "train.rows"
    whole = arrow.read_bytes(), rows.read_bytes()
    arrow.write_bytes(whole[0][:-5] + bytes([whole[0][-5] ^ 1]) + whole[0][-4:])
    rows.unlink()
    with pytest.raises(BadInput) as caught:
        local(FOLDER)
    assert sorted(problem.partition(": ")[0] for problem in caught.value.problems) == [
        "s3://bucket/shards/train.rows",
        "s3://bucket/shards/train/data-00000-of-00001.arrow",
    ]
    (copy,) = (path for path in (tmp_path / "cache/shards").iterdir() if path.is_dir())
    assert not (copy / "manifest.json").exists() and not list(copy.rglob("*.unfinished"))
    arrow.write_bytes(whole[0])
    rows.write_bytes(whole[1])
    kept = copy / "dataset_dict.json"
    time = kept.stat().st_mtime_ns
    assert local(FOLDER) == copy and kept.stat().st_mtime_ns == time  # what was whole is not fetched again


def test_a_full_disk_of_this_machine_is_not_blamed_on_the_store(store, write, tmp_path):
    write()
    copy = local(FOLDER)
    shutil.rmtree(copy)
    copy.mkdir()
    (copy / ".dataset_dict.json.unfinished").symlink_to("/dev/full")
    with pytest.raises(Failed) as caught:
        local(FOLDER)
    mend = "No space left on device; make room, or name a folder on another disk by EMBEDFLEET_CACHE"
    assert str(caught.value) == f"{copy}/.dataset_dict.json.unfinished: {mend}"
    uploads = re.escape(str(tmp_path / "cache" / "uploads"))
    for name in (None, "inside"):
        with pytest.raises(Failed, match=f"^{uploads}.*: {mend}"), upload.uploaded([], FOLDER, True) as folder:
            raise OSError(errno.ENOSPC, "words of pyarrow", name and str(folder / name))
    with pytest.raises(OSError, match="input"), upload.uploaded([], FOLDER, True):
        raise OSError(errno.EIO, "Input/output error", "/data/input.jsonl")


def test_a_file_that_is_gone_before_its_upload_is_no_missing_bucket(store, write, tmp_path):
    with pytest.raises(Failed, match=r"/shards/train.rows: No such file or directory; see EMBEDFLEET_CACHE"):
        write(meanwhile=lambda: next((tmp_path / "cache").rglob("shards/train.rows")).unlink())


def test_processes_of_one_machine_fetch_once(store, write, capsys):
    write()
    capsys.readouterr()
    threads = [threading.Thread(target=local, args=(FOLDER,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("once for this machine") == 1


@pytest.mark.parametrize("path", ["../outside", "/etc/outside"])
def test_a_manifest_that_names_files_elsewhere_is_refused(store, tmp_path, path):
    (store.root / "bucket/shards").mkdir(parents=True)
    entry = {"path": path, "bytes": 1, "sha256": "0"}
    (store.root / "bucket/shards/manifest.json").write_text(json.dumps({"files": [entry]}))
    with pytest.raises(BadInput, match="manifest.json: is no shard manifest"):
        local(FOLDER)
