"""Re-embedding a collection into a new one and searching it, in both stores, with a tiny model."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import tiny
from tests.postgres import postgres_server
from tests.servers import QdrantProtocol, answering
from tests.unit.data_prep.helpers import write_jsonl
from tests.unit.trainer.inference.test_reading import trained
from trainer import reindex as reindex_command
from trainer import search as search_command
from trainer.config.sections import ModelConfig
from trainer.inference.reading import as_trained
from trainer.inference.searching import mismatch
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.check import SAMPLE
from trainer.reindexing.reindex import reindex

COUNT = 40
KINDS = (
    "chroma",
    "qdrant server",
    "pgvector",
)  # Qdrant's: the server's protocol is answered by the engine of local mode


def chunks() -> list[Chunk]:
    rows = tiny.rows(COUNT, negatives=False)
    vector = np.ones(4, dtype=np.float32)
    return [Chunk(str(i), row["positives"][0], {"n": i, "even": i % 2 == 0}, vector) for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Other weights than tiny_bert's: as a model after training."""
    import torch

    folder = tiny.model(tmp_path_factory.mktemp("models") / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    weights = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as url:
        yield url


def emptied(url: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade; create schema public; create extension vector")
    return url


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    """A collection of 40 chunks with vectors of some model that is gone."""
    if request.param == "pgvector":
        url = emptied(request.getfixturevalue("postgres"))
        config = StoreConfig("pgvector", "docs", url=url, text_field="body")
        fill(config)
        yield config
        return
    if request.param == "chroma":
        config = StoreConfig("chroma", "docs", path=tmp_path / "store")
        fill(config)
        yield config
        return
    with answering(QdrantProtocol()) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body")
        fill(config)
        yield config


def fill(config: StoreConfig) -> None:
    with open_store(config, create=True) as store:
        store.create("docs", 4, {}).upsert(chunks())


class Counting(TextEncoder):
    """Counts the texts that are embedded; stops as a killed process would after so many."""

    texts, most = 0, 10**9

    def passages(self, texts):
        if self.texts + len(texts) > self.most:
            raise KeyboardInterrupt
        self.texts += len(texts)
        return super().passages(texts)


def encoder(folder, **options) -> Counting:
    return Counting(ModelConfig(path=str(folder)), "cpu", **options)


def read(config: StoreConfig, name: str) -> list[Chunk]:
    with open_collection(replace(config, collection=name)) as collection:
        return list(collection.chunks(embeddings=True))


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


def test_the_stores_search_agrees_with_the_exact_one(source, tiny_bert):
    reindex(source, "docs-new", encoder(tiny_bert))
    model = encoder(tiny_bert)
    queries = [row["query"] for row in tiny.rows(COUNT)]
    asked, documents = model.queries(queries), model.passages([chunk.text for chunk in chunks()])
    with open_collection(replace(source, collection="docs-new")) as collection:
        found = collection.query(asked, 5)
        evens = collection.query(asked, 5, {"even": True})
        with pytest.raises(BadInput, match="holds vectors of 32 numbers, the query has 8"):
            collection.query(asked[:, :8], 5)
    scores = asked @ documents.T
    for row, answer, even in zip(scores, found, evens):
        got = [row[int(chunk.id)] for chunk in answer]
        np.testing.assert_allclose(got, np.sort(row)[::-1][:5], atol=1e-5)
        assert all(chunk.metadata["even"] for chunk in even)
        np.testing.assert_allclose([row[int(c.id)] for c in even], np.sort(row[::2])[::-1][:5], atol=1e-5)


def test_vectors_that_are_not_normalised_are_compared_by_inner_product(source, tiny_bert):
    model = Counting(ModelConfig(path=str(tiny_bert), normalize=False), "cpu")
    reindex(source, "docs-dot", model)
    asked = model.queries([row["query"] for row in tiny.rows(5)])
    documents = model.passages([chunk.text for chunk in chunks()])
    with open_collection(replace(source, collection="docs-dot")) as collection:
        found = collection.query(asked, 5)
    missed = 0  # Chroma's graph is approximate, for inner products of unlike lengths more than for cosines
    for row, answer in zip(asked @ documents.T, found):
        best, ids = np.argsort(-row)[:5].tolist(), [int(chunk.id) for chunk in answer]
        assert ids == sorted(ids, key=lambda place: -row[place])
        missed += len({*best} - {*ids})
    assert missed <= 3, "of 25; by cosine most would differ"


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


def flags(config: StoreConfig) -> list[str]:
    named = {"store": config.kind, "path": config.path, "url": config.url, "text-field": config.text_field}
    return [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]


def search(capsys, *argv) -> tuple[int, str, str]:
    capsys.readouterr()
    code = search_command.main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_commands(source, tiny_bert, other_model, capsys, monkeypatch):
    """reindex, then search through the store's own vectors, and beside it a model whose vectors it does not hold."""
    monkeypatch.setenv("COLUMNS", "200")
    place = [*flags(source), "--device", "cpu"]
    argv = ["--model", str(other_model), "--collection", "docs", "--target", "docs-new", *place]
    assert reindex_command.main(argv) == 0
    assert "docs-new: 40 chunks with vectors of 32 numbers" in capsys.readouterr().out
    query = tiny.rows(COUNT)[0]["query"]
    code, out, err = search(capsys, query, "--model", other_model, "--collection", "docs-new", *place)
    assert code == 0, err
    assert "embedding its" not in err
    model = encoder(other_model)
    scores = (model.queries([query]) @ model.passages([chunk.text for chunk in chunks()]).T)[0]
    best = np.argsort(-scores)[:3]
    for i in best:
        assert f"cosine {scores[i]:.3f}  {i}" in out
    both = ["--model", other_model, "--compare", tiny_bert, "--collection", "docs-new", "--top", "2"]
    code, out, err = search(capsys, query, *both, *place)
    assert code == 0, err
    assert (
        f"docs-new holds no vectors of {tiny_bert} (reindex recorded those of {other_model}): "
        "embedding its 40 texts here" in err
    )
    assert f"base {tiny_bert}" in " ".join(out.split())
    assert f"cosine {scores[best[0]]:.3f}  {best[0]}" in out


def test_vectors_of_the_same_model_are_recognised_without_a_record(source, tiny_bert, other_model, capsys):
    """A collection that another tool filled with this model is searched as it is, another model's is not."""
    own = encoder(tiny_bert)
    with open_store(source) as store:
        filled = store.create("foreign", own.size, {}, like=store.open("docs"))
        vectors = own.passages([chunk.text for chunk in chunks()])
        filled.upsert([replace(chunk, embedding=vector) for chunk, vector in zip(chunks(), vectors)])
        assert mismatch(encoder(tiny_bert), filled) == "" and "note" not in capsys.readouterr().err
        aside = vectors[:, ::-1] - (vectors * vectors[:, ::-1]).sum(1, keepdims=True) * vectors
        aside /= 10 * np.linalg.norm(aside, axis=1, keepdims=True)
        near = filled_with(store, "near", vectors + aside, own.size)
        assert mismatch(encoder(tiny_bert), near) == ""  # a cosine of 1 / sqrt(1.01)
        said = capsys.readouterr().err
        assert "near are searched as those of" in said and "a cosine of 0.9950 or more" in said
        reason = mismatch(encoder(other_model), filled)
        assert reason.startswith(f"holds no vectors of {other_model} (none of 8 chunks looked at has this model's")
        assert "another prompt or text" in mismatch(
            encoder(tiny_bert), store.open("docs")
        )  # the same 4 numbers for all


def filled_with(store, name: str, embedded, size: int, about: dict | None = None):
    """A collection of all chunks with these vectors."""
    collection = store.create(name, size, about or {}, like=store.open("docs"))
    collection.upsert([replace(chunk, embedding=vector) for chunk, vector in zip(chunks(), embedded)])
    return collection


def with_prompt(folder, prompt: str) -> TextEncoder:
    return TextEncoder(ModelConfig(path=str(folder), passage_prompt=prompt), "cpu")


def test_why_vectors_are_not_searched_as_the_models(source, tiny_bert, other_model, capsys):
    """Each reason is named: they are the model's, but a record, numbers, a prompt or some of the texts differ."""
    texts = [chunk.text for chunk in chunks()]
    own = encoder(tiny_bert).passages(texts)
    with open_store(source) as store:
        first = encoder(tiny_bert)
        assert mismatch(first, filled_with(store, "numbers", own[:, :8], 8)) == "" and first.dim == 8
        assert np.array_equal(first.passages(texts[:2]), encoder(tiny_bert, dim=8).passages(texts[:2]))
        wide = filled_with(store, "wide", np.hstack([own, own]), 64)
        assert "they have 64 numbers, the model makes 32" in mismatch(encoder(tiny_bert), wide)
        changed = np.vstack([own[:6], -own[6:]])
        reason = mismatch(encoder(tiny_bert), filled_with(store, "changed", changed, 32))
        # six, or those of the six that come first where keys are in the order of texts
        some = rf"holds vectors of {tiny_bert} for some texts only \(cosine 0.99 or more: [26] of 8 chunks"
        assert re.match(some, reason)
        bare = filled_with(store, "bare", own, 32)
        reason = mismatch(with_prompt(tiny_bert, "w1 w2 w3 w4 w5: "), bare)
        assert "made without its passage prompt" in reason and '--passage-prompt ""' in reason
        assert mismatch(with_prompt(tiny_bert, ""), bare) == ""
        about = {"embedfleet_model_sha256": "0" * 64, "embedfleet_model": str(tiny_bert)}
        reason = mismatch(encoder(tiny_bert), filled_with(store, "files", own, 32, about))
        assert reason.endswith(f"(reindex recorded those of {tiny_bert}, from other files than it has now)")
        about = {"embedfleet_model_sha256": "0" * 64}
        reason = mismatch(encoder(tiny_bert), filled_with(store, "nameless", own, 32, about))
        assert reason.endswith("(reindex recorded those of another model)")
        about = {"embedfleet_model_sha256": encoder(tiny_bert).fingerprint}
        part = filled_with(store, "part", own[:, :8], 8, about)  # the rest of its record is gone
        half = encoder(tiny_bert)
        assert mismatch(half, part) == "" and half.dim == 8
    with pytest.raises(BadInput, match="model not recorded .*dim: not recorded"):
        reindex(source, "part", encoder(tiny_bert))
    place = [*flags(source), "--device", "cpu"]
    code, _, err = search(capsys, "w1", "--model", tiny_bert, "--collection", "changed", *place)
    assert code == 0 and "changed holds vectors of" in err and "embedding its 40 texts here" in err


def test_a_collection_without_chunks_or_vectors(source, tiny_bert):
    with open_store(source) as store:
        empty = store.create("empty", 32, {}, like=store.open("docs"))
        assert mismatch(encoder(tiny_bert), empty) in ("holds no chunk", "holds no vectors that can be searched")


def test_search_in_a_matryoshka_collection_and_an_unfinished_one(source, tiny_bert, capsys):
    stopped = encoder(tiny_bert, dim=8)
    stopped.most = 20
    with pytest.raises(KeyboardInterrupt):
        reindex(source, "docs-8", stopped, batch=10)
    place = [*flags(source), "--device", "cpu"]
    code, _, err = search(capsys, "w1 w2", "--model", tiny_bert, "--collection", "docs-8", *place)
    assert code == 0, err
    assert "docs-8 is unfinished" in err
    assert "embedding its" not in err


def test_search_in_a_retrieval_set(tiny_bert, tmp_path, capsys):
    folder = tiny.shards(tmp_path / "s", 30, eval_fraction=0.3)
    code, out, err = search(capsys, "w1 w2", "w3", "--model", tiny_bert, "--data", folder, "--top", "1")
    assert code == 0, err
    assert len(re.findall(r"cosine -?\d\.\d{3}  d", out)) == 2


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["--top", "0", "--data", "x"], "--top 0"),
        ([], "--collection NAME of a store, or --data SET"),
        (["--data", "x", "--collection", "docs"], "one of them"),
        (["--data", "none"], "no such folder"),
        (["--collection", "docs"], "needs --path DIR"),
        (
            ["--data", "x", "--path", "c", "--where", "{}"],
            "--path: needs --collection\n  - --where: needs --collection",
        ),
    ],
)
def test_what_cannot_be_searched_is_told(tiny_bert, capsys, argv, reason):
    code, out, err = search(capsys, "w1", "--model", tiny_bert, *argv)
    assert (code, out) == (2, "")
    assert reason in err


def test_a_collection_and_its_pairs_are_evaluated(source, tiny_bert, tmp_path, capsys):
    from trainer.evaluate import main

    rows = [
        {"chunk_id": str(i), "question": row["query"], "answer": row["positives"][0], "metadata": {}}
        for i, row in enumerate(tiny.rows(COUNT, negatives=False))
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows[:30])
    place = ["--collection", "docs", *flags(source), "--device", "cpu", "--model", str(tiny_bert)]
    assert main([*place, "--pairs", str(pairs), "--json", str(tmp_path / "o.json")]) == 0
    found = json.loads((tmp_path / "o.json").read_text())
    model = encoder(tiny_bert)
    texts = [chunk.text for chunk in chunks()]
    scores = model.queries([row["question"] for row in rows[:30]]) @ model.passages(texts).T
    first = np.mean([row.argmax() == i for i, row in enumerate(scores)])
    assert (found["queries"], found["documents"]) == (30, COUNT)
    assert found["metrics"]["recall@1"] == pytest.approx(first)
    write_jsonl(pairs, [rows[0], rows[1] | {"chunk_id": "gone"}])
    assert main([*place, "--pairs", str(pairs)]) == 0
    said = capsys.readouterr().err
    assert f"{pairs}: chunk 'gone' is not in docs; 1 such chunks count as not retrieved" in said
    assert f"query {rows[1]['question']!r} has no chunk in docs; 1 such queries are left out" in said
    assert main([*place, "--pairs", str(pairs), "--strict"]) == 2
    assert capsys.readouterr().err.count("(refused by --strict)") == 2
    write_jsonl(pairs, [rows[1] | {"chunk_id": "gone"}])
    assert main([*place, "--pairs", str(pairs)]) == 2
    assert f"{pairs}: names no chunk that is in docs" in capsys.readouterr().err
    write_jsonl(pairs, [{"anchor": "a", "positive": "b"}])
    assert main([*place, "--pairs", str(pairs)]) == 2
    assert "1 rows name no chunk" in capsys.readouterr().err
    for wrong in ([], ["--pairs", str(pairs), "--data", "x"]):
        assert main([*place, *wrong]) == 2
        assert "--data SET…, or --collection NAME of a store with --pairs FILE" in capsys.readouterr().err


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
