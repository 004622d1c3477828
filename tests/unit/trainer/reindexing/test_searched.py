"""Search in collections and retrieval sets: by a store's vectors where they are the model's, else by texts embedded."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.stores.open import open_collection, open_store
from tests import tiny
from tests.unit.data_prep.helpers import write_jsonl
from tests.unit.trainer.reindexing.helpers import COUNT, Counting, chunks, encoder, flags
from trainer import reindex as reindex_command
from trainer import search as search_command
from trainer.config.sections import ModelConfig
from trainer.inference.searching import mismatch
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing.reindex import reindex


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
