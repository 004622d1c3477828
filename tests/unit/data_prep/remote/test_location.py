"""URLs: what is a location, what is a path, and what is refused without being repeated."""

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from data_prep.common.errors import BadInput, Failed
from data_prep.common.paths import user_path
from data_prep.quality.rows import useful_workers
from data_prep.reading.formats import source_names
from data_prep.remote import location as remote_location
from data_prep.remote.location import Location, location
from tests.launching import free_port
from tests.unit.data_prep.helpers import PAIR, run, write_jsonl

SECRET = "hunter2-5f0c"


def test_a_location_has_the_names_of_a_path():
    place = location("s3://bucket/deep/pairs.jsonl.gz")
    assert (place.name, place.stem, place.suffix) == ("pairs.jsonl.gz", "pairs.jsonl", ".gz")
    assert str(place) == "s3://bucket/deep/pairs.jsonl.gz" and str(place.parent) == "s3://bucket/deep"
    assert location("gs://bucket/shards/") / "manifest.json" == Location("gs", "bucket/shards/manifest.json")
    assert pickle.loads(pickle.dumps(place)) == place  # it travels to workers
    assert list(source_names([place, Path("/a/pairs.csv")]).values()) == ["deep/pairs.jsonl.gz", "a/pairs.csv"]


def test_paths_stay_paths(tmp_path):
    assert location(str(tmp_path)) == location(tmp_path) == tmp_path
    assert location(f"file://{tmp_path}/with%20space") == tmp_path / "with space"


@pytest.mark.parametrize(
    "url, says",
    [
        (f"s3://user:{SECRET}@bucket/a.jsonl", "holds a user, password, port or query"),
        (f"s3://bucket/a.jsonl?secret_key={SECRET}", "AWS_SECRET_ACCESS_KEY"),
        (f"https://user:{SECRET}@host/a.jsonl", "https://…: is no URL that is read"),
        ("s3:///a.jsonl", "has no bucket"),
        ("s3://bucket//a.jsonl", "has '' between two slashes"),
        ("s3://bucket/data/../a.jsonl", "has '..' between two slashes"),
    ],
)
def test_a_url_with_a_secret_or_of_another_kind_is_refused_and_not_repeated(tmp_path, capsys, url, says):
    with pytest.raises(BadInput, match=says) as caught:
        location(url)
    assert SECRET not in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        run(capsys, "shard", url, "--output", tmp_path / "out")
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and says in err and SECRET not in out + err


def test_a_url_where_only_a_path_is_read_is_refused_and_makes_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [PAIR])
    code, _, err = run(capsys, "compose", "a.jsonl", "--output", f"s3://user:{SECRET}@bucket/out.jsonl")
    assert code == 2 and "s3://…: is a URL; here a path of this machine is needed" in err and SECRET not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(BadInput, match="gs://…: is a URL"):
        user_path("gs://bucket/x")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder that stands for an object store; its folders are the buckets."""
    files = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr("data_prep.remote.location._filesystem", lambda scheme: files)
    (tmp_path / "bucket").mkdir()
    return tmp_path


def test_a_url_needs_no_working_folder_on_a_cluster(store, monkeypatch, capsys):
    write_jsonl(store / "bucket" / "a.jsonl", [PAIR])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nothing listens there
    for words in (["inspect"], ["shard", "--output", store / "shards"]):
        code, _, err = run(capsys, *words, "s3://bucket/a.jsonl", "--on", "ray")
        assert code == 2 and "ray" in err.lower() and len(err.splitlines()) == 1, err


def test_a_large_object_is_work_for_many(store, monkeypatch):
    monkeypatch.setattr("data_prep.quality.rows.SPAN_BYTES", 10)
    (store / "bucket" / "a.jsonl").write_bytes(b"x" * 35)
    for path in (store / "bucket" / "a.jsonl", location("s3://bucket/a.jsonl")):
        assert [useful_workers(path, most) for most in (1, 3, 9)] == [1, 3, 4]
    assert useful_workers(location("s3://bucket/nothing.jsonl"), 9) == 1


def test_google_without_credentials_is_one_error_and_no_long_wait(tmp_path, monkeypatch):
    """Google's client itself would ask again for 15 minutes."""
    monkeypatch.setattr(remote_location, "GS_RETRIES", timedelta(seconds=1))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    nobody = f"127.0.0.1:{free_port()}"  # nothing leaves this machine
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://{nobody}")
    monkeypatch.setenv("GCE_METADATA_ROOT", nobody)
    remote_location._filesystem.cache_clear()
    try:
        with pytest.raises(Failed, match=r"gs://bucket/x: .*from the environment are read: GOOGLE_APPLICATION_CRED"):
            location("gs://bucket/x").exists()
    finally:
        remote_location._filesystem.cache_clear()
