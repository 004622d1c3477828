"""Folders of stores that an older or newer version wrote: read without a change, changed only when asked."""

import base64
import hashlib
import json
import os
import pickle
import shutil
import sqlite3
import uuid
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.stores import folders
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection, open_store, write_chunks
from tests.unit.data_prep.helpers import read_jsonl, run
from tests.unit.data_prep.stores.test_stores import SIZE, chunks, fill_chroma, fill_qdrant, local_qdrant

# the last migration of each part that these versions of Chroma know
VERSIONS = {
    "0.4.24": {"sysdb": 4, "metadb": 3, "embeddings_queue": 1},
    "0.5": {"sysdb": 7, "metadb": 4, "embeddings_queue": 2},
    "1.0": {"sysdb": 9, "metadb": 5, "embeddings_queue": 2},
}
TEXTS = [f"Chunk {i} of an old store says something. Its second sentence is the number {i} again." for i in range(3)]


def old_chroma(folder: Path, version: str) -> Path:
    """A folder as that version leaves it, with three documents. The vectors are in its log, not yet in an index."""
    folder.mkdir()
    database = sqlite3.connect(folder / "chroma.sqlite3")
    table = "dir TEXT, version INTEGER, filename TEXT, sql TEXT, hash TEXT, PRIMARY KEY (dir, version)"
    database.execute(f"CREATE TABLE migrations ({table})")
    migrate(database, {}, VERSIONS["0.4.24"])
    collection, metadata, vectors = (str(uuid.UUID(int=i)) for i in (1, 2, 3))
    topic = f"persistent://default/default/{collection}"
    rows = [("collections", (collection, "docs", topic, SIZE, str(uuid.UUID(int=0))))]
    rows.append(("segments", (metadata, "urn:chroma:segment/metadata/sqlite", "METADATA", topic, collection)))
    rows.append(("segments", (vectors, "urn:chroma:segment/vector/hnsw-local-persisted", "VECTOR", topic, collection)))
    for i, text in enumerate(TEXTS, start=1):
        vector = np.eye(SIZE, dtype=np.float32)[i]
        fields = json.dumps({"kind": "old", "chroma:document": text})
        rows.append(("embeddings", (i, metadata, f"id{i}", i.to_bytes(8), "2024-03-01 00:00:00")))
        rows.append(("embedding_metadata", (i, "chroma:document", text, None, None, None)))
        rows.append(("embedding_metadata", (i, "kind", "old", None, None, None)))
        log = (i, "2024-03-01 00:00:00", 0, topic, f"id{i}", vector.tobytes(), "FLOAT32", fields)
        rows.append(("embeddings_queue", log))
        database.execute("INSERT INTO embedding_fulltext_search (rowid, string_value) VALUES (?, ?)", (i, text))
    rows.append(("max_seq_id", (metadata, len(TEXTS).to_bytes(8))))
    for name, values in rows:
        database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(values))})", values)
    migrate(database, VERSIONS["0.4.24"], VERSIONS[version])
    database.commit()
    database.close()
    return folder


def migrate(database: sqlite3.Connection, since: dict[str, int], until: dict[str, int]) -> None:
    for part, last in until.items():
        scripts = sorted(files("chromadb").joinpath("migrations", part).iterdir(), key=lambda file: file.name)
        for script in (one for one in scripts if one.name.endswith(".sql")):
            number, sql = int(script.name[:5]), script.read_text()
            if since.get(part, 0) < number <= last:
                database.executescript(sql)
                row = (part, number, script.name, sql, hashlib.md5(sql.encode()).hexdigest())
                database.execute("INSERT INTO migrations VALUES (?, ?, ?, ?, ?)", row)


def content(folder: Path) -> dict[str, str]:
    """The hash of every file, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Where temporary copies lie."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_of_an_older_chroma_is_read_and_stays_as_it_is(version, tmp_path, copies, capsys):
    store = old_chroma(tmp_path / "chroma", version)
    before = content(store)
    where = ("--path", store, "--collection", "docs", "--min-words", "3", "--output", tmp_path / "o.jsonl")
    code, _, err = run(capsys, "generate", "--offline", *where)
    assert code == 0, err
    assert f"note: --path {store}: was written by an older Chroma. Opening it with Chroma" in err
    assert "temporary copy is read" in err and "--upgrade-store" in err
    assert [pair["chunk_id"] for pair in read_jsonl(tmp_path / "o.jsonl")] == ["id1", "id2", "id3"]
    assert content(store) == before
    with open_collection(StoreConfig("chroma", "docs", path=store)) as collection:
        read = list(collection.chunks(embeddings=True))
        assert [(one.text, one.metadata) for one in read] == [(text, {"kind": "old"}) for text in TEXTS]
        np.testing.assert_array_equal([one.embedding for one in read], np.eye(SIZE)[1:4])
    assert content(store) == before
    assert list(copies.iterdir()) == []


def test_a_folder_of_an_older_chroma_is_changed_only_when_asked(tmp_path, copies, capsys):
    store = old_chroma(tmp_path / "chroma", "0.4.24")
    before, config = content(store), StoreConfig("chroma", "docs", path=store)
    with pytest.raises(BadInput, match="older Chroma.*10 migrations.*can then no longer read it; copy the folder"):
        open_store(config)
    with pytest.raises(BadInput, match="older Chroma.*choose another --path"):
        write_chunks(store, "more", chunks(3), "digest")
    assert content(store) == before
    where = ("--path", store, "--collection", "docs", "--min-words", "3", "--output", tmp_path / "o.jsonl")
    code, _, err = run(capsys, "generate", "--offline", *where, "--upgrade-store")
    assert (code, "older Chroma" in err) == (0, False)
    assert content(store) != before
    with open_store(config) as opened:  # is of this version now
        assert opened.open("docs").count() == 3


def test_a_folder_of_a_newer_or_much_older_chroma_is_told(tmp_path):
    config = StoreConfig("chroma", "docs", path=tmp_path / "c")
    fill_chroma(config, chunks(3))
    with sqlite3.connect(config.path / "chroma.sqlite3") as database:
        database.execute("INSERT INTO migrations VALUES ('sysdb', 99, '00099-x.sqlite.sql', '', '')")
    database.close()
    before = content(config.path)
    with pytest.raises(BadInput, match="newer than .* 1 migrations: sysdb 99; pip install -U chromadb"):
        open_collection(config)
    assert content(config.path) == before
    (tmp_path / "duckdb").mkdir()
    (tmp_path / "duckdb" / "chroma-embeddings.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="Chroma before 0.4, which kept Parquet files"):
        open_collection(StoreConfig("chroma", "docs", path=tmp_path / "duckdb"))


def test_reading_a_folder_of_this_version_copies_nothing(tmp_path, copies, capsys):
    """Qdrant's local mode changes no byte; Chroma writes its own index and log anew whenever it reads."""
    chroma, qdrant = (StoreConfig(kind, "docs", path=tmp_path / kind) for kind in ("chroma", "qdrant"))
    fill_chroma(chroma, chunks())
    with local_qdrant(qdrant.path) as client:
        fill_qdrant(client, "docs", chunks())
    before, migrations = content(qdrant.path), folders._migrations(chroma.path / "chroma.sqlite3")
    for config in (chroma, qdrant):
        with open_collection(config) as collection:
            assert len(list(collection.chunks(embeddings=True))) == 25
            assert not list(copies.glob("embedfleet-*"))
    assert content(qdrant.path) == before
    assert folders._migrations(chroma.path / "chroma.sqlite3") == migrations
    assert "copy" not in capsys.readouterr().err


def twice_in_qdrant(folder: Path) -> None:
    """A point of local mode that older clients left twice: an upsert under another pickle protocol replaced none."""
    with local_qdrant(folder) as client:
        fill_qdrant(client, "docs", chunks(3))
    with sqlite3.connect(folder / "collection" / "docs" / "storage.sqlite") as database:
        ((key, point),) = database.execute("SELECT id, point FROM points LIMIT 1")
        key = base64.b64encode(pickle.dumps(pickle.loads(base64.b64decode(key)), protocol=5)).decode()
        database.execute("INSERT INTO points VALUES (?, ?)", (key, point))
    database.close()


def test_points_that_qdrants_client_would_delete_stay(tmp_path, copies, capsys):
    config = StoreConfig("qdrant", "docs", path=tmp_path / "q")
    twice_in_qdrant(config.path)
    before = content(config.path)
    with open_collection(config) as collection:
        assert len(list(collection.chunks())) == 3
    assert "holds 1 outdated copies of points, which Qdrant's client deletes" in capsys.readouterr().err
    with pytest.raises(BadInput, match="1 outdated copies of points.*--upgrade-store"):
        open_store(config)
    assert content(config.path) == before
    with open_store(StoreConfig("qdrant", "docs", path=config.path, upgrade_store=True)):
        pass
    assert content(config.path) != before
    open_store(config).close()


def test_a_folder_that_cannot_be_written_to_is_read_from_a_copy(tmp_path, copies, monkeypatch, capsys):
    config = StoreConfig("chroma", "docs", path=tmp_path / "c")
    fill_chroma(config, chunks(3))
    monkeypatch.setattr(os, "access", lambda path, mode: path != config.path)
    with open_collection(config) as collection:
        assert collection.count() == 3
    assert "cannot be written to" in capsys.readouterr().err


def test_a_copy_that_does_not_fit_names_the_space(tmp_path, copies, monkeypatch):
    store = old_chroma(tmp_path / "chroma", "0.5")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Failed, match=r"a temporary copy needs [\d,]+ bytes, and .* has 10 free; set TMPDIR"):
        open_collection(StoreConfig("chroma", "docs", path=store))
    assert list(copies.iterdir()) == []


def test_a_failure_leaves_no_copy(tmp_path, copies):
    store = old_chroma(tmp_path / "chroma", "1.0")
    with pytest.raises(BadInput, match=r"which has docs \(3 chunks\)"):
        open_collection(StoreConfig("chroma", "other", path=store))
    assert list(copies.iterdir()) == []
