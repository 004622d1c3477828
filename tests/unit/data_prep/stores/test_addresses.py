"""Ports that a URL leaves out, and Chroma's tenants and databases."""

from dataclasses import replace

import pytest

from data_prep.common.errors import BadInput
from data_prep.generation.config import QuestionGenerationConfig
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection
from data_prep.stores.qdrant.store import QdrantStore, port_of
from tests.servers import chroma_server
from tests.unit.data_prep.helpers import read_jsonl, run
from tests.unit.data_prep.stores.test_stores import chunks


@pytest.mark.parametrize(
    "url, address",
    [
        ("https://host", "https://host:443"),
        ("https://host/", "https://host:443"),
        ("https://host/qdrant", "https://host:443/qdrant"),
        ("https://[::1]", "https://[::1]:443"),
        ("https://host:6333", "https://host:6333"),
        ("https://host:443/qdrant", "https://host:443/qdrant"),
        ("http://host", "http://host:6333"),
        ("http://host:80", "http://host:80"),
    ],
)
def test_the_port_of_a_qdrant_server(url, address, monkeypatch):
    monkeypatch.setattr(QdrantStore, "_check_server", lambda _: None)
    with QdrantStore(StoreConfig("qdrant", "docs", url=url)) as store:
        assert store.client._client.rest_uri.rstrip("/") == address
    assert f":{port_of(url)}" in address


def test_a_port_that_was_not_named_is_in_the_message():
    for url, port in (("https://127.0.0.1", 443), ("http://127.0.0.1", 6333)):
        with pytest.raises(BadInput, match=rf"--url {url} \(asked at port {port}; write the port into the URL"):
            open_collection(StoreConfig("qdrant", "docs", url=url))


@pytest.mark.parametrize(
    "flags, address",
    [
        ({"host": "h"}, "--host h --port 8000"),
        ({"host": "h", "ssl": True}, "--host h --port 443 --ssl"),
        ({"host": "h", "ssl": True, "port": 8000}, "--host h --port 8000 --ssl"),
        ({"url": "https://h"}, "--url https://h"),
    ],
)
def test_the_port_of_a_chroma_server(flags, address):
    assert StoreConfig("chroma", "docs", **flags).place == address


def test_a_qdrant_server_by_host_from_python():
    def url(**more) -> str:
        more = {"collection_name": "docs", "output_path": "o.jsonl", "model": "m", "db_type": "qdrant", **more}
        return QuestionGenerationConfig(**more).store().url

    assert url(host="h", ssl=True) == "https://h"
    assert url(host="h", ssl=True, port=6333) == "https://h:6333"
    assert port_of(url(host="h")) == 6333


def fill(client_of) -> None:
    """The default database is empty; two databases and another tenant hold a collection each."""
    import chromadb

    places = (("default_tenant", "prod"), ("default_tenant", "test"), ("acme", "prod"))
    admin = client_of(chromadb, "default_tenant", "default_database")
    for tenant, database in places:
        if tenant != "default_tenant":
            admin._admin_client.create_tenant(tenant)
        admin._admin_client.create_database(database, tenant)
    for tenant, database in places:
        client = client_of(chromadb, tenant, database)
        collection = client.create_collection(f"docs-{database}", embedding_function=None)
        some = chunks(4)
        collection.add(
            ids=[one.id for one in some],
            documents=[f"{one.text} {tenant}" for one in some],
            embeddings=[one.embedding for one in some],
        )
        client.close()
    admin.close()


@pytest.fixture(scope="module", params=["folder", "server"])
def databases(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chroma")
    if request.param == "folder":
        fill(lambda chromadb, tenant, name: chromadb.PersistentClient(str(folder), tenant=tenant, database=name))
        yield StoreConfig("chroma", "docs-prod", path=folder)
        return
    with chroma_server(folder) as (port, _):
        fill(lambda chromadb, tenant, name: chromadb.HttpClient("127.0.0.1", port, tenant=tenant, database=name))
        yield StoreConfig("chroma", "docs-prod", host="127.0.0.1", port=port)


def test_a_tenant_and_a_database_can_be_named(databases, tmp_path, capsys):
    for tenant, database in ((None, "prod"), ("default_tenant", "prod"), ("acme", "prod")):
        with open_collection(replace(databases, tenant=tenant, database=database)) as collection:
            texts = [chunk.text for chunk in collection.chunks()]
        assert len(texts) == 4 and all(text.endswith(tenant or "default_tenant") for text in texts)
    where = ["--path", databases.path] if databases.path else ["--host", databases.host, "--port", databases.port]
    where += ["--collection", "docs-prod", "--tenant", "acme", "--database", "prod", "--min-words", "3"]
    code, _, err = run(capsys, "generate", "--offline", *where, "--output", tmp_path / "o.jsonl")
    assert code == 0, err
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 4


def test_a_collection_in_another_database_is_pointed_to(databases):
    with pytest.raises(BadInput) as caught:
        open_collection(databases)
    text = str(caught.value)
    assert "which has no collection in database default_database of tenant default_tenant" in text
    assert "(--database and --tenant name another; others there: " in text
    assert "prod, test" in text
    assert ("prod (tenant acme)" in text) == (databases.path is not None)  # a server lists no other tenant's


def test_a_database_or_tenant_that_is_not_there_is_bad_input(databases):
    with pytest.raises(BadInput, match=r"--database prd: not a database of tenant default_tenant; .*mean 'prod'"):
        open_collection(replace(databases, database="prd"))
    with pytest.raises(BadInput, match="--tenant acne: --.* has no database of it"):
        open_collection(replace(databases, tenant="acne", database="prod"))
    with pytest.raises(BadInput, match="--database default_database: not a database of tenant acme; .*prod"):
        open_collection(replace(databases, tenant="acme"))
    with pytest.raises(BadInput, match="not .*database test of tenant default_tenant, which has docs-test"):
        open_collection(replace(databases, collection="docs", database="test"))


@pytest.mark.parametrize(
    "flags, part",
    [
        ("--store qdrant --url http://h --tenant t", "--tenant: belongs to --store chroma"),
        ("--store qdrant --path q --database d", "--database: belongs to --store chroma"),
        ("--host h --upgrade-store", "--upgrade-store: needs --path"),
    ],
)
def test_flags_that_belong_elsewhere(flags, part, capsys, tmp_path):
    code, _, err = run(
        capsys, "generate", "--offline", "--collection", "docs", "--output", tmp_path / "o.jsonl", *flags.split()
    )
    assert code == 2 and part in err
