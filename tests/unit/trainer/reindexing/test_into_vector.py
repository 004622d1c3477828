"""A collection that gets the new model's vectors beside its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import models

from data_prep.common.errors import BadInput
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection, open_store
from data_prep.stores.qdrant.added_vector import AddedVector
from tests.servers import QdrantProtocol, answering
from tests.unit.trainer.reindexing.helpers import COUNT, chunks, encoder, fill, read, served
from tests.unit.trainer.reindexing.test_reindexed_settings import HNSW, PRODUCT, everything
from trainer import reindex as reindex_command
from trainer.inference.searching import mismatch
from trainer.reindexing.reindex import reindex


@pytest.fixture(params=["folder", "server"])
def source(request, tmp_path):
    if request.param == "folder":
        config = StoreConfig("qdrant", "docs", path=tmp_path / "q", text_field="body")
        fill(config)
        yield config
        return
    with served(QdrantProtocol()) as config:
        yield config


def expect_both(config: StoreConfig, model, name: str = "new") -> None:
    """Every chunk of the collection is there with the vectors that it had, and has the model's under this name."""
    old, new = read(config, "docs"), read(replace(config, vector_name=name), "docs")
    assert new == old
    assert all(np.ptp(one.embedding) == 0 for one in old), "four equal numbers"
    own = model.passages([chunk.text for chunk in new])
    np.testing.assert_allclose(np.array([chunk.embedding for chunk in new]), own, atol=1e-6)


def test_each_chunk_gets_the_vector_and_keeps_what_it_has(source, tiny_bert, other_model, capsys):
    before = read(source, "docs")
    assert reindex(source, None, encoder(tiny_bert), batch=7, into_vector="new") == COUNT
    assert "--vector-name new searches the new vectors" in capsys.readouterr().err
    assert read(source, "docs") == before
    expect_both(source, encoder(tiny_bert))
    assert reindex(source, None, encoder(tiny_bert), into_vector="new") == 0
    with open_collection(replace(source, vector_name="new")) as collection:
        assert mismatch(encoder(tiny_bert), collection) == ""
        assert "reindex recorded those of" in mismatch(encoder(other_model), collection)
        assert collection.about["embedfleet_state"] == "whole"
    with open_collection(source) as collection:
        assert not any(key.startswith("embedfleet_") for key in collection.about), "of the other vectors"
        assert collection.size == 4
    reindex(source, None, encoder(other_model), into_vector="newer")
    expect_both(source, encoder(tiny_bert))
    expect_both(source, encoder(other_model), "newer")


def test_a_killed_run_goes_on_and_what_is_written_anew_is_embedded_anew(source, tiny_bert):
    killed = encoder(tiny_bert)
    killed.most = 21
    with pytest.raises(KeyboardInterrupt):
        reindex(source, None, killed, batch=7, into_vector="new")
    assert reindex(source, None, encoder(tiny_bert), into_vector="new") == COUNT - 21
    with open_collection(source) as collection:
        collection.upsert([replace(chunks()[3], text="w1 w2 w3"), replace(chunks()[0], id="99")])
        collection.remove(["7"])
    assert reindex(source, None, encoder(tiny_bert), into_vector="new") == 2
    expect_both(source, encoder(tiny_bert))


def test_a_chunk_that_is_changed_or_deleted_while_it_is_embedded_gets_no_vector_of_its_old_text(source, tiny_bert):
    class Disturbed(type(encoder(tiny_bert))):
        done = False

        def passages(self, texts):
            if not self.done:
                self.done = True
                collection.upsert([replace(chunks()[3], text="w1 w2 w3")])
                collection.remove(["5"])
            return super().passages(texts)

    model = Disturbed(encoder(tiny_bert).config, "cpu")
    with open_store(source) as store:
        collection = store.open("docs")
        about = {"embedfleet_model_sha256": "x"}
        added = store.add_vector(collection, "new", 32, about)
        collection = store.open("docs")  # local mode wants its own vector by name now
        page = [*collection.stored(["3", "4", "5"]).values()]
        vectors = model.passages([one.text for one in page])
        added.upsert([replace(one, embedding=vector) for one, vector in zip(page, vectors)])
        assert {*added.stored(["3", "4", "5"])} == {"4"}
        assert added.count() == 1
        assert collection.count() == COUNT - 1


def test_a_filter_takes_part_of_a_collection(source, tiny_bert):
    assert reindex(source, None, encoder(tiny_bert), where={"even": True}, into_vector="new") == COUNT // 2
    with open_store(source) as store:
        assert AddedVector(store, "docs", "body", "new").count() == COUNT // 2
        docs = store.open("docs")
        docs.store.client.set_payload("docs", {"even": False}, points=[2])  # the vector stays
    assert reindex(source, None, encoder(tiny_bert), where={"even": True}, into_vector="new") == 0


def test_vectors_of_others_are_refused(source, tiny_bert, other_model):
    reindex(source, None, encoder(tiny_bert), into_vector="new")
    with pytest.raises(BadInput, match=r"--into-vector new: belongs to another run .*model_sha256"):
        reindex(source, None, encoder(other_model), into_vector="new")
    with open_store(source) as store:
        dense = models.DenseVectorConfig(size=32, distance=models.Distance.COSINE)
        store.client.create_vector_name("docs", "theirs", models.DenseVectorNameConfig(dense=dense))
        theirs = models.PointVectors(id=1, vector={"theirs": [1.0] * 32})
        store.client.update_vectors("docs", [theirs])
    with pytest.raises(BadInput, match="--into-vector theirs: exists without a record of reindex"):
        reindex(source, None, encoder(tiny_bert), into_vector="theirs")
    with pytest.raises(BadInput, match="--into-vector 'new': must be the name of a new vector"):
        reindex(replace(source, vector_name="new"), None, encoder(other_model), into_vector="new")
    for target, name in ((None, None), ("a", "b")):
        with pytest.raises(BadInput, match="name one of them"):
            reindex(source, target, encoder(tiny_bert), into_vector=name)
    with pytest.raises(BadInput, match="--alias live: belongs to --target"):
        reindex(source, None, encoder(tiny_bert), into_vector="new", alias="live")
    with pytest.raises(BadInput, match="--overwrite-target: belongs to --target"):
        reindex(source, None, encoder(tiny_bert), into_vector="new", overwrite=True)
    with pytest.raises(BadInput, match="--into-vector x+: Qdrant refuses it"):
        reindex(source, None, encoder(tiny_bert), into_vector="x" * 300)


def test_a_server_that_is_too_old_is_named_with_its_version(tiny_bert):
    with answering(QdrantProtocol(version="1.17.3")) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body")
        fill(config)
        with pytest.raises(BadInput, match=r"needs Qdrant 1\.18 or newer, at http://.* is 1\.17\.3; .*--target NEW"):
            reindex(config, None, encoder(tiny_bert), into_vector="new")


def test_other_stores_say_that_they_cannot(tiny_bert, tmp_path, capsys):
    config = StoreConfig("chroma", "docs", path=tmp_path / "store")
    fill(config)
    argv = ["--model", str(tiny_bert), "--path", str(config.path), "--collection", "docs", "--into-vector", "new"]
    assert reindex_command.main([*argv, "--device", "cpu"]) == 2
    refusal = "--into-vector new: Chroma holds one vector of each chunk; make a new collection with --target NEW"
    assert refusal in capsys.readouterr().err


def test_settings_of_the_vector_beside_go_along_and_the_record_into_other_collections(tiny_bert, capsys):
    with answering(QdrantProtocol()) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body", vector_name="dense")
        with open_store(config) as store:
            everything(store.client)
            assert reindex(config, None, encoder(tiny_bert), into_vector="new") == COUNT
            assert "not carried over" not in capsys.readouterr().err
            named = store.client.get_collection("docs").config.params.vectors
            assert {*named} == {"dense", "title", "tokens", "new"}
            new = json.loads(named["new"].model_dump_json(exclude_none=True))
            assert new == {
                "size": 32,
                "distance": "Cosine",
                "datatype": "float16",
                "on_disk": True,
                "hnsw_config": json.loads(HNSW.model_dump_json(exclude_none=True)),
                "quantization_config": json.loads(PRODUCT.model_dump_json(exclude_none=True)),
            }
            assert reindex(config, "docs-new", encoder(tiny_bert)) == COUNT
            assert "not carried over" not in capsys.readouterr().err
            copied = store.open("docs-new", vector_name="new")
            assert mismatch(encoder(tiny_bert), copied) == ""
            assert copied.about["embedfleet_source"] == "docs"
            assert not any(key.startswith("embedfleet_") for key in store.open("docs-new", vector_name="title").about)


def test_a_local_folder_lists_the_settings_that_it_does_not_keep(tiny_bert, tmp_path, capsys):
    config = StoreConfig("qdrant", "docs", path=tmp_path / "q", text_field="body", vector_name="dense")
    with open_store(config, create=True) as store:
        everything(store.client)
    stopped = encoder(tiny_bert)
    stopped.most = 0
    with pytest.raises(KeyboardInterrupt):
        reindex(config, None, stopped, into_vector="new")
    err = capsys.readouterr().err
    assert "not carried over to new: hnsw_config.m: 24, there not set" in err
    assert "not carried over to new: on_disk: True, there not set" in err
