"""Shards from and to object stores, against local ones; training reads a verified local copy."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import forked, tiny
from tests.end_to_end.runs import losses, write_run
from tests.object_store import SECRET, gs_bucket, s3_bucket


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request, tmp_path_factory):
    with s3_bucket() if request.param == "s3" else gs_bucket(tmp_path_factory.mktemp("gs")) as made:
        yield made


@pytest.fixture(scope="module")
def shards(store, tmp_path_factory):
    """A folder with the inputs and a local shard folder, whose twin was written from and to the bucket."""
    folder = tmp_path_factory.mktemp("local")
    rows = tiny.rows(48)
    (folder / "one.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[:30]).encode()))
    pq.write_table(pa.Table.from_pylist(rows[30:]), folder / "two.parquet", compression="zstd", row_group_size=5)
    for name in ("one.jsonl.gz", "two.parquet"):
        store.put(f"in/{name}", (folder / name).read_bytes())
    for where, output in ((folder, folder / "shards"), (f"{store.url}/in", f"{store.url}/shards")):
        done = shard(store, folder, f"{where}/one.jsonl.gz", f"{where}/two.parquet", output)
        assert done.returncode == 0, done.both
    return folder


def shard(store, folder, *words) -> "forked.subprocess.CompletedProcess":
    *inputs, output = words
    options = ["--output", str(output), "--workers", "1", "--eval-fraction", "0"]
    return command(store, folder, "shard", *map(str, inputs), *options)


def command(store, folder, *words, **more) -> "forked.subprocess.CompletedProcess":
    environment = store.environment | {"EMBEDFLEET_CACHE": str(folder / "cache")} | more
    return forked.run("-m", "data_prep", *words, cwd=folder, **environment)


def test_a_folder_in_a_bucket_has_the_bytes_of_a_local_one(store, shards):
    manifest = (shards / "shards" / "manifest.json").read_bytes()
    assert store.get("shards/manifest.json") == manifest
    for entry in json.loads(manifest)["files"]:
        assert store.get(f"shards/{entry['path']}") == (shards / "shards" / entry["path"]).read_bytes()
    assert not list((shards / "cache" / "uploads").glob("*/*"))
    refused = shard(store, shards, shards / "one.jsonl.gz", f"{store.url}/shards")
    assert refused.returncode == 2 and "is a finished shard folder" in refused.stderr
    refused = shard(store, shards, shards / "one.jsonl.gz", f"{store.url}/in")
    assert refused.returncode == 2 and "holds other files, such as one.jsonl.gz" in refused.stderr
    store.put("data/train/pairs.jsonl", b'{"anchor": "a", "positive": "b"}\n')
    refused = shard(store, shards, f"{store.url}/data/train/pairs.jsonl", f"{store.url}/data")
    assert refused.returncode == 2 and "holds the input" in refused.stderr
    refused = shard(store, shards, shards / "one.jsonl.gz", f"{store.url}/data")
    assert refused.returncode == 2 and "holds other files, such as train/pairs.jsonl" in refused.stderr
    assert store.get("data/train/pairs.jsonl")


def test_two_ranks_fetch_it_once_and_train_on_the_rows_of_the_local_folder(store, shards, tmp_path):
    run = write_run(tmp_path, tiny.model(tmp_path / "model"), f"{store.url}/shards", epochs=1)
    more = store.environment | {"EMBEDFLEET_CACHE": str(tmp_path / "node")}
    done = forked.run_ranks(2, "-m", "trainer", "--config", str(run), "--engine", "ddp", **more)
    assert done.returncode == 0, done.both[-3000:]
    assert losses(tmp_path / "out")
    assert done.stderr.count("once for this machine") == 1
    record, manifest = tmp_path / "out" / "run.json", shards / "shards" / "manifest.json"
    assert json.loads(record.read_text())["data_fingerprint"] == json.loads(manifest.read_text())["fingerprint"]
    assert SECRET not in done.both + "".join(file.read_text() for file in (tmp_path / "out").glob("*.json*"))


def test_a_changed_byte_and_a_missing_manifest_are_named(store, shards):
    data, manifest = (store.get(f"shards/{name}") for name in ("train/data-00000-of-00001.arrow", "manifest.json"))
    store.put("shards/train/data-00000-of-00001.arrow", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    seen = command(store, shards, "inspect", f"{store.url}/shards", EMBEDFLEET_CACHE=str(shards / "other"))
    assert seen.returncode == 2 and "sha256 differs" in seen.stderr
    assert f"{store.url}/shards/train/data-00000-of-00001.arrow: its bytes" in seen.stderr
    store.delete("shards/manifest.json")  # what a killed upload leaves
    seen = command(store, shards, "inspect", f"{store.url}/shards")
    assert seen.returncode == 2 and "has no manifest.json" in seen.stderr
    where = f"{store.url}/in"
    again = shard(store, shards, f"{where}/one.jsonl.gz", f"{where}/two.parquet", f"{store.url}/shards")
    assert again.returncode == 0 and "is unfinished (no manifest.json) and will be replaced" in again.stderr
    assert store.get("shards/manifest.json") == manifest
    assert store.get("shards/train/data-00000-of-00001.arrow") == data


def test_what_the_store_refuses_is_one_error_without_secrets(store, shards):
    scheme = store.url.partition(":")[0]
    nobody = f"{scheme}://nobody"
    for url, says in (
        (f"{store.url}/in/nothing.jsonl", "nothing.jsonl: no such file or folder"),
        (f"{nobody}/x.jsonl", f"{nobody}/x.jsonl: no such file or folder"),
        (f"{scheme}://moto:{SECRET}@data/in/one.jsonl.gz", "the URL holds a user, password, port or query"),
        (f"{store.url}/in/one.jsonl.gz?secret_key={SECRET}", "the URL holds a user, password, port or query"),
        ("https://example.org/x.jsonl", "https://…: is no URL that is read"),
    ):
        done = shard(store, shards, url, shards / "refused")
        assert done.returncode == 2 and says in done.stderr, done.both
        assert SECRET not in done.both and "Traceback" not in done.both
    done = shard(store, shards, shards / "one.jsonl.gz", f"{nobody}/shards")
    assert done.returncode == 2, done.both
    assert done.stderr == f"error: {nobody}/shards/.embedfleet-write: no such bucket or object\n"
