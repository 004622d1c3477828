"""Stores of every kind behind the same methods, on real engines and real sockets."""

import gc
import json
import os
import random
import shutil
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests.servers import QdrantProtocol, answering, chroma_server, gate
from tests.unit.data_prep.helpers import read_jsonl, run

KINDS = ("chroma folder", "chroma server", "qdrant folder", "qdrant server")
SIZE = 8
TOKEN = "s3cr3t-t0k3n"


def chunks(count: int = 25) -> list[Chunk]:
    """Chunks in a shuffled order of ids; every third is of kind "b"."""
    made = []
    for i in random.Random(0).sample(range(count), count):
        vector = np.random.default_rng(i).standard_normal(SIZE).astype(np.float32)
        metadata = {"kind": "ab"[i % 3 == 0], "number": i, "share": i / 4, "good": i % 2 == 0}
        made.append(
            Chunk(
                str(i),
                f"Chunk {i} says something of its own. Its second sentence is the number {i} once more.",
                metadata,
                vector / np.linalg.norm(vector),
            )
        )
    return made


def fill_chroma(config: StoreConfig, stored: list[Chunk]) -> None:
    with open_store(config, create=True) as store:
        store.create(config.collection, SIZE, {}).upsert(stored)


def fill_qdrant(client, name: str, stored: list[Chunk], vectors=None, field: str = "text") -> None:
    from qdrant_client import models

    plain = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    client.create_collection(name, vectors_config=vectors or plain)
    points = [
        models.PointStruct(
            id=int(chunk.id) if chunk.id.isdigit() else chunk.id,
            vector=dict.fromkeys(vectors, chunk.embedding.tolist()) if vectors else chunk.embedding.tolist(),
            payload={field: chunk.text, **chunk.metadata},
        )
        for chunk in stored
    ]
    if points:
        client.upsert(name, points)


@contextmanager
def local_qdrant(folder: Path):
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    yield client
    client.close()


@pytest.fixture(scope="module")
def chroma_port(tmp_path_factory):
    with chroma_server(tmp_path_factory.mktemp("chroma-server")) as (port, _):
        fill_chroma(StoreConfig("chroma", "docs", host="127.0.0.1", port=port), chunks())
        yield port


@pytest.fixture(scope="module")
def places(tmp_path_factory, chroma_port):
    """kind -> the config of a collection with the same chunks."""
    folder = tmp_path_factory.mktemp("stores")
    fill_chroma(StoreConfig("chroma", "docs", path=folder / "chroma"), chunks())
    with local_qdrant(folder / "qdrant") as client:
        fill_qdrant(client, "docs", chunks())
    protocol = QdrantProtocol()
    fill_qdrant(protocol.local, "docs", chunks())
    with answering(protocol) as port:
        yield {
            "chroma folder": StoreConfig("chroma", "docs", path=folder / "chroma"),
            "chroma server": StoreConfig("chroma", "docs", host="127.0.0.1", port=chroma_port),
            "qdrant folder": StoreConfig("qdrant", "docs", path=folder / "qdrant"),
            "qdrant server": StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}"),
        }


@pytest.fixture
def place(places, request):
    return places[request.param]


every_kind = pytest.mark.parametrize("place", KINDS, indirect=True)


@every_kind
def test_every_chunk_is_read_once_in_a_stable_order(place):
    stored = chunks() if place.kind == "chroma" else sorted(chunks(), key=lambda chunk: int(chunk.id))
    with open_collection(place) as collection:
        assert collection.count() == 25
        for page in (1, 7, 24, 25, 1000):
            read = list(collection.chunks(page=page))
            assert [(one.id, one.text, one.metadata) for one in read] == [
                (one.id, one.text, dict(sorted(one.metadata.items()))) for one in stored
            ]
            assert all(one.embedding is None for one in read)


@every_kind
def test_the_stores_own_embeddings_are_read_along(place):
    own = {chunk.id: chunk.embedding for chunk in chunks()}
    with open_collection(place) as collection:
        for chunk in collection.chunks(page=10, embeddings=True):
            assert chunk.embedding.dtype == np.float32
            np.testing.assert_allclose(chunk.embedding, own[chunk.id], atol=1e-6)


@pytest.mark.parametrize("place", ["chroma server", "qdrant server"], indirect=True)
def test_answers_of_a_server_do_not_pile_up(place):
    import httpx

    with open_collection(place) as collection:
        gc.collect()
        gc.disable()
        try:
            alive = [
                sum(isinstance(thing, httpx.Response) for thing in gc.get_objects())
                for _ in collection.chunks(page=1, embeddings=True)
            ]
        finally:
            gc.enable()
    assert max(alive) <= alive[0] + 2, alive


@every_kind
def test_a_filter_chooses_chunks_and_counts_them(place):
    with open_collection(place) as collection:
        for where in ({"kind": "b"}, {"number": 7}, {"good": True}):
            ((field, value),) = where.items()
            ids = {chunk.id for chunk in chunks() if chunk.metadata[field] == value}
            read = [chunk.id for chunk in collection.chunks(where, page=4)]
            assert len(read) == len(ids) == collection.count(where)
            assert set(read) == ids


@every_kind
def test_a_missing_collection_is_answered_with_those_there(place):
    with pytest.raises(BadInput, match=r"--collection doc: not (in|at) .* which has docs \(25 chunks\).*mean 'docs'"):
        open_collection(replace(place, collection="doc"))


@every_kind
def test_what_is_written_is_found_again(place):
    with open_store(place) as store:
        made = store.create("fresh", SIZE, {"made": "here", "number": 3})
        made.upsert(chunks(20))
        changed = replace(chunks(20)[4], text="Another text.", metadata={"kind": "c"})
        made.upsert([changed])  # in the place of the old one, whose other fields are gone
        made.describe({"number": 4})
        with pytest.raises(BadInput, match="--collection fresh: is there already"):
            store.create("fresh", SIZE, {})
    with open_collection(replace(place, collection="fresh")) as collection:
        assert collection.size == SIZE
        assert (collection.about["made"], collection.about["number"]) == ("here", 4)
        assert collection.count() == 20
        wanted = [changed.id, chunks(20)[0].id, "none-there" if place.kind == "chroma" else "999"]
        assert collection.stored(wanted) == {changed.id: changed, **{c.id: c for c in sorted_fields(chunks(20)[:1])}}
        for chunk, found in zip(chunks(20), collection.query(np.array([c.embedding for c in chunks(20)]), 3)):
            assert len(found) == 3
            assert found[0].id == chunk.id
            np.testing.assert_allclose(found[0].embedding, chunk.embedding, atol=1e-6)
        assert [c.id for c in collection.query(changed.embedding[None], 5, {"kind": "c"})[0]] == [changed.id]


def sorted_fields(stored: list[Chunk]) -> list[Chunk]:
    return [replace(chunk, metadata=dict(sorted(chunk.metadata.items()))) for chunk in stored]


@pytest.mark.parametrize(
    "place, where",
    [
        ("chroma folder", {"a": 1, "b": 2}),
        ("chroma folder", {"$nor": [{"a": 1}, {"b": 2}]}),
        ("chroma server", {"$nor": [{"a": 1}, {"b": 2}]}),
        ("chroma server", {"a": {"$near": 1}}),
        ("qdrant folder", {"must": [{"key": "a", "matches": {"value": 1}}]}),
        ("qdrant folder", {"must": [{"key": "a", "match": {"value": "x"}}], "other": 1}),
        ("qdrant folder", {"a": 1.5}),
        ("qdrant server", {"a": {"$gt": 1}}),
    ],
    indirect=["place"],
)
def test_a_filter_that_the_store_does_not_understand_is_refused(place, where):
    with open_collection(place) as collection:
        for use in (collection.count, lambda where: list(collection.chunks(where))):
            with pytest.raises(BadInput, match="--where "):
                use(where)


def test_qdrants_own_filters(places):
    where = {"must": [{"key": "number", "range": {"gte": 20}}], "must_not": [{"key": "kind", "match": {"value": "b"}}]}
    for kind in ("qdrant folder", "qdrant server"):
        with open_collection(places[kind]) as collection:
            assert [chunk.id for chunk in collection.chunks(where)] == ["20", "22", "23"]
            assert [chunk.id for chunk in collection.chunks({"kind": "b", "number": 9})] == ["9"]


def test_chunks_deleted_while_they_are_read_are_noticed(tmp_path):
    config = StoreConfig("chroma", "docs", path=tmp_path / "c")
    fill_chroma(config, chunks())
    with open_collection(config) as collection:
        reading = collection.chunks(page=10)
        first = [next(reading).id for _ in range(10)]
        collection.inner.delete(ids=[chunks()[20].id])  # behind the page: no chunk moves
        next(reading)
        collection.inner.delete(ids=first[:1])
        with pytest.raises(Failed, match="deleted while it was read"):
            list(reading)


def test_qdrant_notices_no_deletion_because_none_moves_a_chunk(tmp_path):
    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "docs", chunks())
    with open_collection(StoreConfig("qdrant", "docs", path=tmp_path / "q")) as collection:
        reading = collection.chunks(page=10)
        next(reading)
        collection.store.client.delete("docs", [0, 1, 2])
        assert [chunk.id for chunk in reading] == [str(i) for i in range(1, 25)]  # the first page was read already


def test_ids_of_qdrant_are_numbers_and_uuids(tmp_path):
    names = ["7", str(uuid.UUID(int=5)), "12345678901234567890"]
    stored = [replace(chunk, id=name) for chunk, name in zip(chunks(3), names)]
    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "docs", stored)
    with open_collection(StoreConfig("qdrant", "docs", path=tmp_path / "q")) as collection:
        assert {chunk.id for chunk in collection.chunks(page=1)} == set(names)


def test_the_text_field_of_a_payload(tmp_path, capsys):
    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "lang", chunks(3), field="page_content")
        fill_qdrant(client, "own", chunks(3), field="body")
        fill_qdrant(client, "both", [replace(one, metadata={"document": "x"}) for one in chunks(3)])
        fill_qdrant(client, "empty", [])
    config = StoreConfig("qdrant", "lang", path=tmp_path / "q")
    with open_collection(config) as collection:
        assert all(chunk.text.startswith("Chunk") for chunk in collection.chunks())
    assert "lang: the text is the payload field 'page_content'" in capsys.readouterr().err
    with pytest.raises(
        BadInput, match=r"none is called .*; there: body \(text\), good \(bool\), kind \(text\), number"
    ):
        open_collection(replace(config, collection="own"))
    with open_collection(replace(config, collection="own", text_field="body")) as collection:
        assert len(list(collection.chunks())) == 3
    with pytest.raises(BadInput, match=r"--text-field bodi: no text stands there in the first 3 .*mean 'body'"):
        open_collection(replace(config, collection="own", text_field="bodi"))
    with pytest.raises(BadInput, match="text and document may both be it"):
        open_collection(replace(config, collection="both"))
    with open_collection(replace(config, collection="empty")) as collection:
        assert list(collection.chunks()) == []


def test_points_without_text_are_refused_with_their_fields(tmp_path):
    from qdrant_client import models

    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "docs", chunks())
        bare = [models.PointStruct(id=i, vector=[0.0] * SIZE, payload={"summary": "x"}) for i in (90, 91)]
        client.upsert("docs", bare)
    with open_collection(StoreConfig("qdrant", "docs", path=tmp_path / "q")) as collection:
        with pytest.raises(BadInput, match=r"2 chunks have no text, such as 90, 91 \(metadata fields there: summary\)"):
            list(collection.chunks())
        assert len(list(collection.chunks({"must_not": [{"is_empty": {"key": "text"}}]}))) == 25


def test_named_vectors(tmp_path):
    from qdrant_client import models

    def params(**more):
        return models.VectorParams(size=SIZE, distance=models.Distance.COSINE, **more)

    many = {"multivector_config": models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)}
    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "two", chunks(3), {"title": params(), "body": params()})
        fill_qdrant(client, "one", chunks(3), {"body": params()})
        client.create_collection("tokens", vectors_config=params(**many))
        client.upsert("tokens", [models.PointStruct(id=1, vector=[[1.0] * SIZE], payload={"text": "a text"})])
        client.create_collection("none", vectors_config={})
    config = StoreConfig("qdrant", "two", path=tmp_path / "q")
    own = {chunk.id: chunk.embedding for chunk in chunks(3)}
    for asked in (replace(config, vector_name="body"), replace(config, collection="one")):
        with open_collection(asked) as collection:
            for chunk in collection.chunks(embeddings=True):
                np.testing.assert_allclose(chunk.embedding, own[chunk.id], atol=1e-6)
    with open_collection(config) as collection:
        assert len(list(collection.chunks())) == 3  # without embeddings nothing has to be chosen
        with pytest.raises(BadInput, match="choose one with --vector-name: body, title"):
            list(collection.chunks(embeddings=True))
    with pytest.raises(BadInput, match=r"--vector-name bod: two has named vectors: body, title.*mean 'body'"):
        open_collection(replace(config, vector_name="bod"))
    for name, reason in (("tokens", "one per token"), ("none", "no dense vector")):
        with open_collection(replace(config, collection=name)) as collection, pytest.raises(BadInput, match=reason):
            list(collection.chunks(embeddings=True))


def test_a_locked_qdrant_folder_is_one_line(tmp_path):
    with local_qdrant(tmp_path / "q") as client:
        fill_qdrant(client, "docs", chunks(3))
        with pytest.raises(Failed, match="another process has this Qdrant folder open"):
            open_collection(StoreConfig("qdrant", "docs", path=tmp_path / "q"))
    open_collection(StoreConfig("qdrant", "docs", path=tmp_path / "q")).close()  # and free again after it


def test_folders_that_are_no_store(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "meta.json").write_text("{")
    (tmp_path / "broken" / "chroma.sqlite3").write_text("no database" * 100)
    for kind, file in (("chroma", "chroma.sqlite3"), ("qdrant", "meta.json")):
        config = StoreConfig(kind, "docs", path=tmp_path / "none")
        with pytest.raises(BadInput, match="no such folder"):
            open_collection(config)
        assert not (tmp_path / "none").exists()
        with pytest.raises(BadInput, match=rf"no {file}; it holds notes.txt"):
            open_collection(replace(config, path=tmp_path / "other"))
        with pytest.raises(BadInput, match="is a file"):
            open_collection(replace(config, path=tmp_path / "other" / "notes.txt"))
        with pytest.raises(BadInput, match=f"{file} is damaged"):
            open_collection(replace(config, path=tmp_path / "broken"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_placeholder_is_no_embedding(tmp_path):
    with open_store(StoreConfig("chroma", "docs", path=tmp_path / "c"), create=True) as store:
        store.create("docs", None, {}).upsert([Chunk("a", "a text")])
        with pytest.raises(BadInput, match="its vectors are placeholders"):
            list(store.open("docs").chunks(embeddings=True))


ANSWERS = [  # what another server on that port may answer
    (404, b"<html>", "no {} server.*HTTP 404"),
    (200, b"<html>", "no {} server"),
    (401, b"{}", "wants a .*: set "),
]


@pytest.mark.parametrize("kind, server", [("chroma", "Chroma"), ("qdrant", "Qdrant")])
@pytest.mark.parametrize("status, body, message", ANSWERS)
def test_what_answers_on_a_wrong_port_is_told(kind, server, status, body, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused = pytest.raises(BadInput, match=message.format(server))
    with answering(lambda *_: (status, "text/html", body)) as port, refused as caught:
        open_collection(server_config(kind, port))
    assert str(port) in str(caught.value)
    with pytest.raises(BadInput, match=f"no {server} server answers there"):
        open_collection(server_config(kind, port))  # nobody listens any more


def server_config(kind: str, port: int) -> StoreConfig:
    if kind == "chroma":
        return StoreConfig("chroma", "docs", host="127.0.0.1", port=port)
    return StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}")


def test_tokens_come_from_the_environment_or_dotenv_and_stay_out_of_messages(
    chroma_port, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHROMA_TOKEN", raising=False)
    protocol = QdrantProtocol(key=TOKEN)
    fill_qdrant(protocol.local, "docs", chunks(3))
    with gate(chroma_port, TOKEN) as chroma, answering(protocol) as qdrant:
        for kind, port, name in (("chroma", chroma, "CHROMA_TOKEN"), ("qdrant", qdrant, "QDRANT_API_KEY")):
            with pytest.raises(BadInput, match=f"wants a .*: set {name}"):
                open_collection(server_config(kind, port))
            monkeypatch.setenv(name, "wr0ng-t0k3n")
            with pytest.raises(BadInput, match=rf"refuses the \w+ in {name}") as caught:
                open_collection(server_config(kind, port))
            assert "wr0ng" not in str(caught.value)
            monkeypatch.delenv(name)
            (tmp_path / ".env").write_text(f"{name}={TOKEN}\n")
            with open_collection(server_config(kind, port)) as collection:
                assert len(list(collection.chunks())) == collection.count() > 0
            assert name not in os.environ
    assert TOKEN not in capsys.readouterr().err


def test_a_token_in_a_servers_answer_is_hidden(monkeypatch, tmp_path):
    """A server that quotes the request back, while a collection is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDRANT_API_KEY", TOKEN)
    protocol = QdrantProtocol(key=TOKEN)
    fill_qdrant(protocol.local, "docs", chunks(3))
    broken = []

    def answer(request, body):
        if broken:
            error = {"status": {"error": f"cannot serve api-key {request.headers['api-key']}"}}
            return 500, "application/json", json.dumps(error).encode()
        return protocol(request, body)

    with answering(answer) as port, open_collection(server_config("qdrant", port)) as collection:
        broken.append(True)
        with pytest.raises(Failed, match=r"cannot serve api-key \[hidden\]$"):
            collection.count()


def test_a_server_that_is_gone_is_one_line(places):
    protocol = QdrantProtocol()
    fill_qdrant(protocol.local, "docs", chunks())
    with answering(protocol) as port:
        collection = open_collection(server_config("qdrant", port))
    with pytest.raises(Failed, match=f"Qdrant failed at http://127.0.0.1:{port}: "):
        list(collection.chunks())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_a_chroma_server_behind_tls(chroma_port, monkeypatch, tmp_path):
    certificate = tmp_path / "server.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(make, check=True, capture_output=True)
    monkeypatch.setenv("CHROMA_TOKEN", TOKEN)
    with gate(chroma_port, TOKEN, certificate) as port:
        config = StoreConfig("chroma", "docs", host="127.0.0.1", port=port, ssl=True)
        with pytest.raises(BadInput, match=r"--ssl: no Chroma server answers there \(.*certificate"):
            open_collection(config)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with open_collection(config) as collection:
            assert collection.count() == 25


@pytest.mark.parametrize(
    "flags, parts",
    [
        ("", ["needs --path DIR (a folder) or --host"]),
        ("--path c --host h", ["not both"]),
        ("--path c --port 8000 --ssl", ["--port: needs --host", "--ssl: needs --host"]),
        ("--host h --port 99999", ["--port 99999: must be 1 to 65535"]),
        ("--host http://h", ["must be a host name"]),
        ("--path c --url http://h", ["--url: belongs to --store qdrant"]),
        ("--path c --text-field x --vector-name y", ["--text-field: belongs", "--vector-name: belongs"]),
        ("--store qdrant", ["needs --path DIR (a folder) or --url"]),
        ("--store qdrant --url h:6333", ["must look like http://localhost:6333"]),
        ("--store qdrant --url http://h:x", ["--url: "]),
        ("--store qdrant --url https://me:s3cr3t-t0k3n@h", ["put the key into QDRANT_API_KEY"]),
        ("--store qdrant --url http://h --host h --ssl", ["--host: belongs to --store chroma", "--ssl: belongs"]),
    ],
)
def test_contradictory_flags_are_listed(flags, parts, capsys, tmp_path):
    options = ["--offline", "--collection", "docs", "--output", tmp_path / "o.jsonl", *flags.split()]
    code, out, err = run(capsys, "generate", *options)
    assert (code, out) == (2, "")
    assert all(part in err for part in parts), err
    assert TOKEN not in err


@every_kind
def test_pairs_from_every_kind_of_store(place, capsys, tmp_path):
    flags = ["--store", place.kind, "--collection", "docs", "--where", '{"kind": "b"}', "--min-words", "3"]
    for name in ("path", "host", "port", "url"):
        if getattr(place, name) is not None:
            flags += [f"--{name}", getattr(place, name)]
    code, _, err = run(capsys, "generate", "--offline", *flags, "--output", tmp_path / "o.jsonl")
    assert code == 0, err
    asked = {one["chunk_id"]: one["metadata"]["kind"] for one in read_jsonl(tmp_path / "o.jsonl")}
    assert asked == {chunk.id: "b" for chunk in chunks() if chunk.metadata["kind"] == "b"}
