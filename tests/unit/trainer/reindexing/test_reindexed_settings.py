"""Everything that a collection has goes along when it is embedded anew, or is listed before the first text is."""

from dataclasses import replace

import pytest
from qdrant_client import QdrantClient, models

from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection
from tests.servers import QdrantProtocol, answering, chroma_server
from tests.unit.trainer.reindexing.helpers import COUNT, chunks, encoder
from trainer.reindexing.reindex import reindex, roll_back

HNSW = models.HnswConfigDiff(m=24, ef_construct=77, full_scan_threshold=12345, on_disk=True, payload_m=8)
SCALAR = models.ScalarQuantization(
    scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
)
PRODUCT = models.ProductQuantization(
    product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=False)
)
BINARY = models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
MANY = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
INDEXES = {
    "user": models.KeywordIndexParams(type="keyword", is_tenant=True, on_disk=True),
    "n": models.IntegerIndexParams(type="integer", lookup=False, range=True, is_principal=True),
    "share": models.PayloadSchemaType.FLOAT,
    "body": models.TextIndexParams(
        type="text", tokenizer=models.TokenizerType.WORD, min_token_len=2, max_token_len=9, lowercase=True
    ),
    "seen": models.DatetimeIndexParams(type="datetime", on_disk=True),
    "even": models.BoolIndexParams(type="bool"),
    "key": models.UuidIndexParams(type="uuid", is_tenant=True),
    "place": models.GeoIndexParams(type="geo"),
}


def everything(client: QdrantClient) -> None:
    """A collection with every setting that the client's models know."""
    dense = models.VectorParams(
        size=4,
        distance=models.Distance.COSINE,
        hnsw_config=HNSW,
        quantization_config=PRODUCT,
        on_disk=True,
        datatype=models.Datatype.FLOAT16,
    )
    client.create_collection(
        "docs",
        vectors_config={
            "dense": dense,
            "title": models.VectorParams(size=3, distance=models.Distance.EUCLID, quantization_config=BINARY),
            "tokens": models.VectorParams(size=2, distance=models.Distance.DOT, multivector_config=MANY),
        },
        sparse_vectors_config={
            "words": models.SparseVectorParams(
                index=models.SparseIndexParams(full_scan_threshold=9, on_disk=True), modifier=models.Modifier.IDF
            )
        },
        shard_number=3,
        sharding_method=models.ShardingMethod.AUTO,
        replication_factor=2,
        write_consistency_factor=2,
        on_disk_payload=False,
        hnsw_config=models.HnswConfigDiff(m=0, payload_m=16, max_indexing_threads=2),
        optimizers_config=models.OptimizersConfigDiff(
            deleted_threshold=0.3, default_segment_number=4, indexing_threshold=100, memmap_threshold=200
        ),
        wal_config=models.WalConfigDiff(wal_capacity_mb=64, wal_segments_ahead=1),
        quantization_config=SCALAR,
        strict_mode_config=models.StrictModeConfig(
            enabled=True, upsert_max_batchsize=7, max_query_limit=11, search_max_batchsize=5, max_points_count=1000
        ),
        metadata={"team": "search", "year": 2026},
    )
    diff = models.CollectionParamsDiff(read_fan_out_factor=2)
    client.update_collection("docs", collection_params=diff)
    for field, schema in INDEXES.items():
        client.create_payload_index("docs", field, field_schema=schema)
    points = [
        models.PointStruct(
            id=int(one.id),
            vector={
                "dense": one.embedding.tolist(),
                "title": [float(i), 1.0, 0.5],
                "tokens": [[1.0, float(i)], [0.25, 0.5]],
                "words": models.SparseVector(indices=[i, 500], values=[0.5, 1.5]),
            },
            payload={"body": one.text, "user": f"u{i % 3}", **one.metadata},
        )
        for i, one in enumerate(chunks())
    ]
    for start in range(0, COUNT, 7):
        client.upsert("docs", points[start : start + 7])


@pytest.fixture
def server():
    protocol = QdrantProtocol()
    with answering(protocol) as port:
        client = QdrantClient(url=f"http://127.0.0.1:{port}", check_compatibility=False)
        everything(client)
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body", vector_name="dense")
        yield protocol, client, config
        client.close()


def described(client: QdrantClient, name: str) -> dict:
    """All of a collection's settings but the size of the vectors that were embedded anew and its metadata."""
    info = client.get_collection(name)
    found = info.config.model_dump(mode="json")
    found["params"]["vectors"]["dense"].pop("size")
    found.pop("metadata")
    return {**found, "payload": {field: one.model_dump(mode="json") for field, one in info.payload_schema.items()}}


def test_every_setting_of_qdrant_goes_along(server, tiny_bert, capsys):
    _, client, config = server
    assert reindex(config, "docs-new", encoder(tiny_bert)) == COUNT
    assert "not carried over" not in capsys.readouterr().err
    assert described(client, "docs-new") == described(client, "docs")
    assert client.get_collection("docs-new").config.params.vectors["dense"].size == 32
    about = client.get_collection("docs-new").config.metadata
    assert (about["team"], about["year"], about["embedfleet_source"]) == ("search", 2026, "docs")
    assert {*client.get_collection("docs-new").payload_schema} == {*INDEXES}
    names = ["title", "tokens", "words"]
    for one in range(COUNT):
        (old,), (new,) = (client.retrieve(name, [one], with_vectors=names) for name in ("docs", "docs-new"))
        assert (new.vector, new.payload) == (old.vector, old.payload)


def test_chunks_are_counted_where_strict_mode_forbids_to_count_exactly(server, tiny_bert):
    _, client, config = server
    strict = models.StrictModeConfig(enabled=True, search_allow_exact=False, max_query_limit=11)
    client.update_collection("docs", strict_mode_config=strict)
    with open_collection(config) as collection:
        assert collection.count() == COUNT
        assert collection.count({"user": "u1"}) == len(range(1, COUNT, 3))
    assert reindex(config, "docs-new", encoder(tiny_bert), alias="live") == COUNT


def test_named_vectors_that_stay_behind_are_listed_with_the_flag_that_takes_them_along(server, tiny_bert, capsys):
    _, _, config = server
    reindex(replace(config, vector_name=None), "docs-new", encoder(tiny_bert))
    line = "not carried over to docs-new: params.vectors.title.size: 3, there not set (--vector-name title embeds that"
    assert line in capsys.readouterr().err


def test_settings_that_a_killed_run_had_not_made_yet_are_made_by_the_next_one(server, tiny_bert, monkeypatch, capsys):
    _, client, config = server
    with monkeypatch.context() as killed:
        killed.setattr(QdrantClient, "create_payload_index", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reindex(config, "docs-new", encoder(tiny_bert))
    assert client.get_collection("docs-new").payload_schema == {}
    assert reindex(config, "docs-new", encoder(tiny_bert)) == COUNT
    assert "not carried over" not in capsys.readouterr().err
    assert described(client, "docs-new") == described(client, "docs")


def test_an_alias_of_a_collection_with_several_vectors_is_moved_back(server, tiny_bert, capsys):
    _, _, config = server
    reindex(config, "docs-1", encoder(tiny_bert), alias="live")
    reindex(config, "docs-2", encoder(tiny_bert), alias="live")
    roll_back(replace(config, collection="live", vector_name=None), "live")
    assert "alias live: points to docs-1 again, before to docs-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("forgotten", "line"),
    [
        ("quantization_config", "quantization_config.scalar.always_ram: True, there not set"),
        ("shard_number", "params.shard_number: 3, there 1"),
        ("strict_mode_config", "strict_mode_config.max_points_count: 1000, there not set"),
    ],
)
def test_what_a_server_does_not_keep_is_listed_before_the_first_text_is_embedded(
    server, forgotten, line, tiny_bert, capsys
):
    protocol, _, config = server
    protocol.forgets = forgotten
    stopped = encoder(tiny_bert)
    stopped.most = 0
    with pytest.raises(KeyboardInterrupt):
        reindex(config, "docs-new", stopped)
    assert f"not carried over to docs-new: {line}" in capsys.readouterr().err


def test_whole_numbers_of_a_vector_are_not_kept_and_said(tiny_bert, capsys):
    with answering(QdrantProtocol()) as port:
        client = QdrantClient(url=f"http://127.0.0.1:{port}", check_compatibility=False)
        params = models.VectorParams(size=4, distance=models.Distance.DOT, datatype=models.Datatype.UINT8)
        client.create_collection("docs", vectors_config=params)
        client.upsert("docs", [models.PointStruct(id=1, vector=[1, 2, 3, 4], payload={"text": "w1 w2"})])
        client.close()
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}")
        assert reindex(config, "docs-new", encoder(tiny_bert)) == 1
    err = capsys.readouterr().err
    assert "not carried over to docs-new: params.vectors.datatype: 'uint8', there not set" in err


def test_the_stand_in_refuses_what_the_schema_forbids():
    import httpx

    with answering(QdrantProtocol()) as port:
        address = f"http://127.0.0.1:{port}/collections/docs"
        body = {"vectors": {"size": 4, "distance": "Cosine"}}
        assert httpx.put(address, json={**body, "hnsw": {"m": 3}}).status_code == 400
        assert httpx.put(address, json={**body, "hnsw_config": {"m": 3, "unknown": 1}}).status_code == 400
        assert httpx.put(address, json={**body, "hnsw_config": {"m": 3}}).status_code == 200
        assert httpx.get(address).json()["result"]["config"]["hnsw_config"]["m"] == 3
        assert httpx.get(address).json()["result"]["config"]["hnsw_config"]["ef_construct"] == 100


SETTINGS = {"space": "l2", "ef_construction": 333, "ef_search": 222, "max_neighbors": 24}


@pytest.mark.parametrize("served", [False, True])
def test_settings_metadata_tenant_and_database_of_chroma_go_along(served, tiny_bert, tmp_path, capsys):
    import chromadb
    from chromadb.utils.embedding_functions import DefaultEmbeddingFunction

    def prepare(client_of) -> None:
        client = client_of()
        client._admin_client.create_tenant("acme")
        client._admin_client.create_database("prod", "acme")
        client.close()

    def fill(client) -> None:
        collection = client.create_collection(
            "docs",
            metadata={"team": "search", "year": 2026},
            configuration={"hnsw": SETTINGS},
            embedding_function=DefaultEmbeddingFunction(),
        )
        ids, texts = [one.id for one in chunks()], [one.text for one in chunks()]
        collection.add(ids=ids, documents=texts, embeddings=[one.embedding.tolist() for one in chunks()])
        client.close()

    def moved(config: StoreConfig) -> None:
        assert reindex(config, "docs-new", encoder(tiny_bert)) == COUNT
        err = capsys.readouterr().err
        assert "not carried over to docs-new: embedding function: 'default', there not set" in err
        assert "search with its query_embeddings=" in err
        assert err.count("not carried over") == 1
        with open_collection(replace(config, collection="docs-new")) as made:
            kept = made.inner.configuration_json["hnsw"]
            assert {name: kept[name] for name in SETTINGS} == SETTINGS
            assert (made.about["team"], made.about["year"]) == ("search", 2026)
            assert (made.store.tenant, made.store.database) == ("acme", "prod")

    part = {"tenant": "acme", "database": "prod"}
    folder = tmp_path / "chroma"
    if served:
        with chroma_server(folder) as (port, _):
            place = {"host": "127.0.0.1", "port": port}
            prepare(lambda **which: chromadb.HttpClient(**place, **which))
            fill(chromadb.HttpClient(**place, **part))
            moved(StoreConfig("chroma", "docs", **place, **part))
        return
    prepare(lambda **which: chromadb.PersistentClient(str(folder), **which))
    fill(chromadb.PersistentClient(str(folder), **part))
    moved(StoreConfig("chroma", "docs", path=folder, **part))


def test_settings_in_a_chroma_collections_metadata_go_along(tiny_bert, tmp_path, capsys):
    import chromadb

    about = {"hnsw:space": "l2", "hnsw:search_ef": 222, "hnsw:construction_ef": 333, "hnsw:M": 24}
    about["hnsw:num_threads"] = 3  # the only one that the settings of the index lack
    client = chromadb.PersistentClient(str(tmp_path))
    made = client.create_collection("docs", embedding_function=None, metadata=about)
    made.add(ids=["a"], documents=["w1"], embeddings=[[1.0, 2.0]])
    client.close()
    config = StoreConfig("chroma", "docs", path=tmp_path)
    assert reindex(config, "docs-new", encoder(tiny_bert)) == 1
    (lost,) = [line for line in capsys.readouterr().err.splitlines() if "not carried over" in line]
    assert lost.endswith("hnsw:num_threads: 3, there not set")
    with open_collection(replace(config, collection="docs-new")) as new:
        kept = new.inner.configuration_json["hnsw"]
    assert {name: kept[name] for name in SETTINGS} == SETTINGS


def test_chromas_own_few_candidates_are_raised_and_said(tiny_bert, tmp_path, capsys):
    import chromadb

    client = chromadb.PersistentClient(str(tmp_path))
    client.create_collection("docs", embedding_function=None).add(ids=["a"], documents=["w1"], embeddings=[[1.0, 2.0]])
    client.close()
    assert reindex(StoreConfig("chroma", "docs", path=tmp_path), "docs-new", encoder(tiny_bert)) == 1
    err = capsys.readouterr().err
    for name in ("ef_construction", "ef_search"):
        assert f"not carried over to docs-new: hnsw.{name}: 100, there 200" in err
