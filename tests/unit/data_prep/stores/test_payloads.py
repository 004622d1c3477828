"""Where a Qdrant payload holds its text: the layouts of other libraries, and paths."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from data_prep.stores.payloads import name_of, path_of, put, take, value_at
from tests.unit.data_prep.helpers import read_jsonl, run
from tests.unit.data_prep.stores.test_stores import SIZE, local_qdrant

TEXT = "Mould grows on damp walls. It is a fungus that needs water."


def node(text: str, **more) -> dict:
    """A payload as LlamaIndex writes it."""
    content = {"id_": "n1", "embedding": None, "metadata": {"file": "a.md"}, "relationships": {}, "text": text, **more}
    return {
        "_node_content": json.dumps(content),
        "_node_type": "TextNode",
        "document_id": "d1",
        "doc_id": "d1",
        "ref_doc_id": "d1",
        "file": "a.md",
    }


HAYSTACK = {"id": "h1", "content": TEXT, "meta": {"name": "a", "text": "x"}, "score": None, "blob": None}
LAYOUTS = {
    "llama-index": (node(TEXT), "_node_content.text"),
    "llama-index, text resource": (node("", text_resource={"text": TEXT}), "_node_content.text_resource.text"),
    "llama-index, text beside": (node("") | {"text": TEXT}, "text"),
    "llama-index, a metadata field text": (node(TEXT) | {"text": "another"}, "_node_content.text"),
    "langchain": ({"page_content": TEXT, "metadata": {"source": "a.md", "text": "x"}}, "page_content"),
    "langchain, no metadata": ({"page_content": TEXT, "metadata": None}, "page_content"),
    "haystack": (HAYSTACK, "content"),
    "fastembed": ({"document": TEXT, "source": "a.md"}, "document"),
    "spring": ({"doc_content": TEXT, "source": "a.md"}, "doc_content"),
    "langchain4j": ({"text_segment": TEXT, "file": "a.md"}, "text_segment"),
}


def fill(folder, payloads: list[dict], name: str = "docs") -> StoreConfig:
    from qdrant_client import models

    with local_qdrant(folder) as client:
        params = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=params)
        vector = [1.0] * SIZE
        points = [models.PointStruct(id=i, vector=vector, payload=payload) for i, payload in enumerate(payloads)]
        client.upsert(name, points)
    return StoreConfig("qdrant", name, path=folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_other_libraries_are_recognised(layout, tmp_path, capsys):
    payload, field = LAYOUTS[layout]
    config = fill(tmp_path / "q", [payload] * 3)
    with open_collection(config) as collection:
        assert collection.text_field == field
        read = list(collection.chunks())
    assert [chunk.text for chunk in read] == [TEXT] * 3
    assert f"the text is the payload field {field!r}" in capsys.readouterr().err
    path = path_of(field)
    assert value_at(read[0].metadata, path) is None
    written = put(read[0].metadata, path, TEXT)
    assert {key: _parsed(value) for key, value in written.items()} == {k: _parsed(v) for k, v in payload.items()}


def _parsed(value):
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


@pytest.mark.parametrize(
    "payload, asked, metadata",
    [
        ({"meta": {"body": TEXT, "page": 3}}, "meta.body", {"meta": {"page": 3}}),
        ({"a": {"b": {"c": TEXT}}, "text": "x"}, "a.b.c", {"a": {"b": {}}, "text": "x"}),
        ({"meta.body": TEXT, "meta": {"body": "x"}}, "meta.body", {"meta": {"body": "x"}}),
        ({"meta": {"a.b": TEXT}}, 'meta."a.b"', {"meta": {}}),
        ({"payload": json.dumps({"text": TEXT, "n": 1})}, "payload.text", {"payload": '{"n": 1}'}),
        ({"x": 1, **node(TEXT)}, "_node_content.text", None),
        (node(TEXT), "_node_content", None),  # what is in it is JSON; its text is meant
    ],
)
def test_a_path_names_any_other_text(payload, asked, metadata, tmp_path):
    config = fill(tmp_path / "q", [payload] * 2)
    with open_collection(StoreConfig("qdrant", "docs", path=config.path, text_field=asked)) as collection:
        read = list(collection.chunks())
        assert list(collection.stored(["0"])) == ["0"] and collection.stored(["0"])["0"].text == TEXT
    assert [chunk.text for chunk in read] == [TEXT] * 2
    assert metadata is None or read[0].metadata == metadata


def test_a_path_without_text_and_an_unknown_layout_list_the_fields(tmp_path):
    config = fill(tmp_path / "q", [{"meta": {"body": TEXT, "page": 3}, "kind": "a"}])
    listed = r"kind \(text\), meta.body \(text\), meta.page \(int\)"
    with pytest.raises(BadInput, match=rf"which payload field of docs .*none is called .*; there: {listed}"):
        open_collection(config)
    for wrong in ("meta.bod", "meta.page", "meta", "kind.body"):
        asked = StoreConfig("qdrant", "docs", path=config.path, text_field=wrong)
        with pytest.raises(BadInput, match=rf"--text-field {wrong}: no text stands there .*{listed}"):
            open_collection(asked)


def test_points_without_the_text_of_their_layout_are_refused(tmp_path):
    broken = node(TEXT) | {"_node_content": '{"text": "cut of'}
    config = fill(tmp_path / "q", [node(TEXT), node(""), broken])
    refused = pytest.raises(BadInput, match="2 chunks have no text, such as 1, 2 .*'_node_content.text' is empty")
    with open_collection(config) as collection, refused:
        list(collection.chunks())


def test_texts_that_are_json_are_pointed_out_by_the_store_and_by_the_gate(tmp_path, capsys):
    texts = [json.dumps({"text": f"{TEXT} Its number is {i} of them.", "page": i}) for i in range(4)]
    config = fill(tmp_path / "q", [{"content": text} for text in texts])
    where = ("--store", "qdrant", "--path", config.path, "--collection", "docs", "--min-words", "2")
    code, _, err = run(capsys, "generate", "--offline", *where, "--output", tmp_path / "o.jsonl", "--keywords", "5")
    assert code == 0, err
    assert "4 of the first 4 texts are JSON objects; a path names the text in it, such as --text-field content" in err
    code, _, err = run(
        capsys, "generate", "--offline", *where, "--output", tmp_path / "o.jsonl", "--text-field", "content.text"
    )
    assert code == 0, err
    assert all(not row["answer"].startswith("{") for row in read_jsonl(tmp_path / "o.jsonl"))


def test_a_new_collection_of_the_same_form_holds_the_text_where_the_source_does(tmp_path):
    payloads = {"llama": node(TEXT), "nested": {"meta": {"body": TEXT, "n": 1}}, "dotted": {"meta.body": TEXT, "n": 1}}
    fields = {"llama": None, "nested": "meta.body", "dotted": "meta.body"}
    for name, payload in payloads.items():
        fill(tmp_path / "q", [payload], name)
        config = StoreConfig("qdrant", name, path=tmp_path / "q", text_field=fields[name])
        with open_store(config) as store:
            source = store.open(name)
            chunks = [Chunk(c.id, c.text, c.metadata, np.ones(SIZE, np.float32)) for c in source.chunks()]
            store.create(f"{name}-new", SIZE, {}, like=source).upsert(chunks)
            assert store.open(f"{name}-new", **source.layout).stored(["0"]) == source.stored(["0"])
            with pytest.raises(BadInput, match="has a metadata field .* as well"):
                filled = put(chunks[0].metadata, path_of(source.text_field), "x")
                source.upsert([Chunk("0", TEXT, filled, chunks[0].embedding)])
        with local_qdrant(tmp_path / "q") as client:
            (point,) = client.retrieve(f"{name}-new", [0])
            assert {key: _parsed(value) for key, value in point.payload.items()} == {
                key: _parsed(value) for key, value in payload.items()
            }


KEYS = st.text(st.characters(codec="utf-8", exclude_characters='"'), min_size=1, max_size=4)


@given(st.lists(KEYS, min_size=1, max_size=4).map(tuple))
def test_paths_have_a_name(path):
    assert path_of(name_of(path)) == path


@given(
    st.dictionaries(KEYS, st.dictionaries(KEYS, st.text(max_size=3)) | st.integers(), max_size=4),
    st.lists(KEYS, min_size=1, max_size=3).map(tuple),
    st.booleans(),
)
def test_a_text_that_is_put_is_taken_again_and_changes_nothing_else(payload, path, as_json):
    filled = put(payload, path, TEXT)
    if as_json:
        filled = {"outer": json.dumps(filled)}
        path = ("outer", *path)
    before = json.dumps(filled)
    text, rest = take(filled, path)
    assert text == TEXT and json.dumps(filled) == before
    assert value_at(rest, path) is None
    assert take(put(rest, path, TEXT), path) == (TEXT, rest)
