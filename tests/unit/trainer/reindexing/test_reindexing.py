"""Re-embedding a collection into a new one, in each kind of store, with a tiny model."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import tiny
from tests.servers import QdrantProtocol, answering
from tests.unit.trainer.inference.test_reading import trained
from tests.unit.trainer.reindexing.helpers import COUNT, chunks, encoder, fill, flags, read
from trainer import reindex as reindex_command
from trainer.config.sections import ModelConfig
from trainer.inference.reading import as_trained
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.check import SAMPLE
from trainer.reindexing.reindex import reindex


def test_ids_texts_and_metadata_are_kept_and_the_vectors_are_the_models(source, tiny_bert):
    assert reindex(source, "docs-new", encoder(tiny_bert), batch=7) == COUNT
    old, new = read(source, "docs"), read(source, "docs-new")
    assert [(c.id, c.text, c.metadata) for c in new] == [(c.id, c.text, c.metadata) for c in old]
    own = encoder(tiny_bert).passages([chunk.text for chunk in new])
    np.testing.assert_allclose(np.array([chunk.embedding for chunk in new]), own, atol=1e-6)


def test_a_stopped_run_goes_on_and_embeds_nothing_twice(source, tiny_bert, capsys):
    stopped = encoder(tiny_bert)
    stopped.most = 21
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-new", stopped, batch=7)
    with open_collection(replace(source, collection="docs-new")) as collection:
        assert collection.about["embedfleet_state"] == "unfinished"
    again = encoder(tiny_bert)
    assert reindex(source, "docs-new", again, batch=10) == COUNT - 21
    assert again.texts == COUNT - 21 + min(SAMPLE, COUNT), "those that are checked are embedded again"
    assert "19 embedded now" in (out := capsys.readouterr().out)
    assert "21 were there" in out
    assert len(read(source, "docs-new")) == COUNT
    with open_collection(replace(source, collection="docs-new")) as collection:
        assert collection.about["embedfleet_state"] == "whole"


def test_a_second_run_embeds_what_changed_and_counts_what_was_deleted(source, tiny_bert, capsys):
    reindex(source, "docs-new", encoder(tiny_bert))
    with open_collection(source) as collection:
        changed = [replace(chunks()[3], text="w1 w2 w3"), replace(chunks()[5], metadata={"n": -5})]
        collection.upsert([*changed, replace(chunks()[0], id="99")])
        collection.remove(["7"])
    assert reindex(source, "docs-new", encoder(tiny_bert)) == 3
    new = {chunk.id: chunk for chunk in read(source, "docs-new")}
    assert new["3"].text == "w1 w2 w3"
    assert new["5"].metadata == {"n": -5}
    assert "99" in new
    assert "docs-new: 1 chunks were deleted that docs does not have any more" in capsys.readouterr().err


def test_targets_of_others_are_refused(source, tiny_bert, other_model):
    reindex(source, "docs-new", encoder(tiny_bert))
    for options, reason in (
        ({"encoder": encoder(other_model)}, r"belongs to another run .* of the model .*bert.*model_sha256: \w{12}…"),
        ({"encoder": encoder(tiny_bert, dim=8)}, "dim: 32"),
        ({"where": {"even": True}}, "where: ''"),
        ({"target": "docs"}, "--target docs: is --collection"),
        (
            {"target": "mine"},
            "--target mine: exists without a record of reindex \\(embedfleet_model_sha256 in its metadata\\)",
        ),
        ({"batch": 0}, "--batch 0"),
        ({"encoder": encoder(tiny_bert, dim=33), "target": "wide"}, "--dim 33: .* of 32 numbers"),
        ({"where": {"n": 1000}, "target": "none"}, "no chunk fits --where"),
    ):
        with open_store(source) as store:
            if "mine" not in store.names():
                store.create("mine", 4, {})
        asked = {"target": "docs-new", "encoder": encoder(tiny_bert)} | options
        with pytest.raises(BadInput, match=reason):
            reindex(source, asked.pop("target"), asked.pop("encoder"), **asked)


def test_a_filter_takes_part_of_a_collection(source, tiny_bert):
    assert reindex(source, "docs-even", encoder(tiny_bert), where={"even": True}) == COUNT // 2
    assert all(chunk.metadata["even"] for chunk in read(source, "docs-even"))


def test_matryoshka_keeps_the_first_numbers_at_length_one(source, tiny_bert):
    reindex(source, "docs-8", encoder(tiny_bert, dim=8))
    new = read(source, "docs-8")
    whole = encoder(tiny_bert).passages([chunk.text for chunk in new])[:, :8]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(np.array([chunk.embedding for chunk in new]), expected, atol=1e-6)


def test_aliases_are_swapped_where_there_are_any(source, tiny_bert, other_model, capsys):
    if source.kind == "chroma":
        with pytest.raises(BadInput, match="Chroma has no aliases"):
            reindex(source, "docs-new", encoder(tiny_bert), alias="live")
        reindex(source, "docs-new", encoder(tiny_bert))
        assert "Chroma has no aliases: whoever searches docs keeps doing so until it opens" in capsys.readouterr().err
        return
    for alias in ("docs", "docs-new"):
        with pytest.raises(BadInput, match=f"--alias {alias}: is a collection's own name"):
            reindex(source, "docs-new", encoder(tiny_bert), alias=alias)
    reindex(source, "docs-1", encoder(tiny_bert), alias="live")
    assert "alias live: points to docs-1\n" in capsys.readouterr().out
    live = replace(source, collection="live")
    reindex(live, "docs-2", encoder(other_model))
    assert "live is an alias and still points to docs-1: --alias live moves it" in capsys.readouterr().err
    reindex(live, "docs-2", encoder(other_model), alias="live")
    assert "alias live: points to docs-2, before to docs-1" in capsys.readouterr().out
    with open_store(source) as store:
        assert store.aliases() == {"live": "docs-2"}
        vector = store.open("live").query(encoder(other_model).queries(["w1"]), 1)[0][0].embedding
        assert vector.shape == (32,)


def test_a_server_that_keeps_no_metadata_is_refused(tiny_bert):
    with answering(QdrantProtocol(drop_metadata=True)) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}")
        with open_store(config) as store:
            with pytest.raises(BadInput, match=r"needs Qdrant 1\.16"):
                store.create("docs", 4, {})
            assert store.names() == []


def test_ids_that_qdrant_cannot_hold_are_named(tmp_path):
    with open_store(StoreConfig("qdrant", "docs", path=tmp_path / "q"), create=True) as store:
        collection = store.create("docs", 4, {})
        for bad in ("a", "007", "-1", "5C56C793-69F3-4FBF-87E6-C4BF54C28C26"):
            with pytest.raises(BadInput, match=f"id '{bad}': Qdrant takes"):
                collection.upsert([replace(chunks()[0], id=bad)])
        with pytest.raises(BadInput, match="0 has a metadata field 'text' as well"):
            collection.upsert([replace(chunks()[0], metadata={"text": "x"})])


def test_other_vectors_go_along(tiny_bert, tmp_path, capsys):
    from qdrant_client import QdrantClient, models

    params = models.VectorParams(size=4, distance=models.Distance.COSINE)
    client = QdrantClient(path=str(tmp_path / "q"))
    sparse = {"words": models.SparseVectorParams()}
    client.create_collection("docs", vectors_config={"title": params, "body": params}, sparse_vectors_config=sparse)
    ones = {"title": [0.5] * 4, "body": [1.0] * 4}
    words = {"words": models.SparseVector(indices=[3, 7], values=[0.25, 2.0])}
    points = [
        models.PointStruct(id=i, vector=ones | (words if i else {}), payload={"text": f"w{i} w2"}) for i in range(5)
    ]
    client.upsert("docs", points)
    client.close()
    config = StoreConfig("qdrant", "docs", path=tmp_path / "q", vector_name="body")
    assert reindex(config, "docs-new", encoder(tiny_bert)) == 5
    assert "not carried over" not in capsys.readouterr().err
    assert reindex(config, "docs-new", encoder(tiny_bert)) == 0
    with open_collection(replace(config, collection="docs-new")) as collection:
        (first, second), _ = collection.store.client.scroll("docs-new", limit=2, with_vectors=["title", "words"])
        assert first.vector == {"title": [0.5] * 4}
        assert second.vector["words"] == words["words"]
        new = {"title": [0.5] * 4, "words": models.SparseVector(indices=[3], values=[9.0])}
        collection.store.client.update_vectors("docs", [models.PointVectors(id=1, vector=new)])
    assert reindex(config, "docs-new", encoder(tiny_bert)) == 1, "whose sparse vector changed"
    with open_collection(replace(config, collection="docs-new")) as collection:
        assert collection.layout == {"text_field": "text", "vector_name": "body"}
        assert collection.query(encoder(tiny_bert).passages(["w3 w2"]), 1)[0][0].id == "3"


def test_a_failure_while_writing_is_one_line(tiny_bert, tmp_path, monkeypatch):
    from qdrant_client import QdrantClient

    config = StoreConfig("qdrant", "docs", path=tmp_path / "q", text_field="body")
    fill(config)
    written, upsert = [], QdrantClient.upsert

    def full(*argv, **options):
        if len(written) == 2:
            raise ValueError("disk is full")
        written.append(True)
        upsert(*argv, **options)

    monkeypatch.setattr(QdrantClient, "upsert", full)
    with pytest.raises(Failed, match="Qdrant failed in .*: disk is full"):
        reindex(config, "docs-new", encoder(tiny_bert), batch=15)
    monkeypatch.undo()
    assert reindex(config, "docs-new", encoder(tiny_bert)) == COUNT - 30
    assert {chunk.id for chunk in read(config, "docs-new")} == {chunk.id for chunk in chunks()}


def test_documents_are_read_at_the_length_and_with_the_prompt_of_the_run(tmp_path, capsys):
    """They are read as by trainer.evaluate and trainer.search: a folder states one length, its run had two."""
    config = StoreConfig("chroma", "docs", path=tmp_path / "store")
    fill(config)
    final = trained(tmp_path / "final", tiny.model(tmp_path / "base"), query_max_len=5, passage_max_len=4)
    argv = ["--model", str(final), *flags(config), "--collection", "docs", "--device", "cpu"]
    assert reindex_command.main([*argv, "--target", "docs-new"]) == 0
    assert "texts to 4 tokens (as it was trained)" in capsys.readouterr().err
    with open_collection(replace(config, collection="docs-new")) as collection:
        assert collection.about["embedfleet_passage_max_len"] == 4
        new = list(collection.chunks(embeddings=True))
    run = TextEncoder(as_trained(ModelConfig(path=str(final))), "cpu")
    own = run.passages([chunk.text for chunk in new])
    np.testing.assert_allclose(np.array([chunk.embedding for chunk in new]), own, atol=1e-6)
    assert reindex_command.main([*argv, "--target", "docs-6", "--max-len", "6"]) == 0
    assert "texts to 6 tokens (--max-len)" in capsys.readouterr().err
    with open_collection(replace(config, collection="docs-6")) as collection:
        assert collection.about["embedfleet_passage_max_len"] == 6


@pytest.mark.parametrize("asked, owner", [(None, "the model folder's limit"), (16, "--max-len")])
def test_texts_that_are_cut_are_counted_with_the_owner_of_the_limit(tiny_bert, tmp_path, capsys, asked, owner):
    config = StoreConfig("chroma", "docs", path=tmp_path / "store")
    with open_store(config, create=True) as store:
        long = [replace(chunk, text=" ".join(["w1"] * 100)) for chunk in chunks()[:3]]
        store.create("docs", 4, {}).upsert([*long, *chunks()[3:]])
    model = ModelConfig(path=str(tiny_bert), query_max_len=asked, passage_max_len=asked)
    reindex(config, "docs-new", TextEncoder(model, "cpu"))
    assert f"texts to {asked or 32} tokens ({owner})" in capsys.readouterr().err
