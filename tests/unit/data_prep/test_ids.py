"""Ids are equal to the letter wherever they are compared; only texts are compared in their normal form."""

import contextlib
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.composing.search_logs import Rule, logs
from data_prep.mining.candidates import Corpus
from data_prep.reading.retrieval_sets import load_set
from data_prep.records import Record, id_key, normalise, text_key
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from tests.unit.data_prep.helpers import read_jsonl, write_jsonl, write_records

WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
SPELLINGS = (
    str,
    str.upper,
    str.lower,
    str.swapcase,
    lambda name: name.translate(WIDE),
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: unicodedata.normalize("NFKC", name),
    lambda name: f"{name}\u0301",
    lambda name: f" {name}",
    lambda name: name.replace("1", "\u0661").replace("2", "\u00b2"),  # digits of other scripts
)
NAMES = st.text("aAbBßİıſσςé12-_", min_size=1, max_size=6)
TWO_IDS = st.tuples(NAMES, st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS)).map(
    lambda drawn: (drawn[1](drawn[0]), drawn[2](drawn[0]))
)
DIFFERENT = TWO_IDS.filter(lambda pair: pair[0] != pair[1])
SOME = settings(max_examples=25)


@given(TWO_IDS)
def test_keys_of_ids_are_equal_only_for_equal_ids(pair):
    one, other = pair
    assert (id_key(one) == id_key(other)) == (one == other)
    assert id_key(one) not in (text_key(one), text_key(f"id:{one}")), "a text has the key of no id"
    assert 0 <= id_key(one) < 2**63


@given(DIFFERENT)
def test_mining_keeps_documents_apart(pair):
    """The text of another document may be chosen, by id and by --same-document; one of the same may not."""
    for field in (None, "page"):
        corpus = Corpus(field)
        for number, name in enumerate((*pair, pair[0])):
            identity, metadata = ("", {"page": name}) if field else (name, {})
            corpus.add(f"text {number}", identity, metadata)
        doc_ids, metadata = ([], {"page": pair[0]}) if field else ([pair[0]], {})
        record = Record("asked", ["positive"], doc_ids=doc_ids, metadata=metadata)
        corpus.add_row(record, choose=False)
        corpus.seal()
        assert corpus.forbidden(record).tolist() == [0, 2, 3]


@SOME
@given(DIFFERENT)
def test_shards_keep_documents_apart(pair):
    with tempfile.TemporaryDirectory() as folder:
        rows = [Record(f"q{i}", [f"p{i}"], doc_ids=[name]) for i, name in enumerate((*pair, pair[1]))]
        source = write_records(Path(folder) / "rows.jsonl", rows)
        shard([source], Path(folder) / "shards", eval_fraction=0)
        (of,) = open_shards(Path(folder) / "shards").train_sources()
        index, keys = of.shared.keys_of(np.arange(3))
        assert (index.tolist(), keys.tolist()) == ([1, 2], [0, 0])


@SOME
@given(DIFFERENT)
def test_splits_keep_documents_apart(pair):
    """Documents are whole on one side, and two of them are not one: some seed parts them."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [Record(f"q{i}", [f"p{i}"], doc_ids=[pair[i % 2]]) for i in range(8)]
        source = write_records(Path(folder) / "rows.jsonl", rows)
        for seed in range(30):
            with contextlib.suppress(BadInput):  # both on one side, which leaves the other one empty
                shard([source], Path(folder) / "shards", eval_fraction=0.5, seed=seed)
                break
        shards = open_shards(Path(folder) / "shards")
        found = [{name for record in shards.split(split) for name in record.doc_ids} for split in ("train", "eval")]
        assert sorted(map(len, found)) == [1, 1] and set.union(*found) == {*pair}


@SOME
@given(DIFFERENT)
def test_a_catalogue_and_a_log_keep_items_apart(pair):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        items = write_jsonl(path / "items.jsonl", [{"id": name, "text": f"text {i}"} for i, name in enumerate(pair)])
        clicks = [{"query": "q", "item": name, "position": 1, "count": 3 + i} for i, name in enumerate(pair)]
        logs([write_jsonl(path / "log.jsonl", clicks)], path / "out.jsonl", rule=Rule(), items=items)
        found = [
            (*row["doc_ids"], *row["positives"], row["metadata"]["clicks"]) for row in read_jsonl(path / "out.jsonl")
        ]
        assert found == [(pair[0], "text 0", 3), (pair[1], "text 1", 4)]


@SOME
@given(DIFFERENT.filter(lambda pair: all(name.strip() for name in pair)))
def test_a_retrieval_set_keeps_queries_and_documents_apart(pair):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for name in ("corpus", "queries"):
            write_jsonl(path / f"{name}.jsonl", [{"_id": one, "text": f"text {i}"} for i, one in enumerate(pair)])
        (path / "qrels.tsv").write_text(f"{pair[0]}\t{pair[1]}\t1\n{pair[1]}\t{pair[0]}\t2\n", encoding="utf-8")
        data = load_set(path)
        assert data.doc_ids == data.query_ids == [*pair]
        assert data.qrels == {pair[0]: {pair[1]: 1}, pair[1]: {pair[0]: 2}}


@pytest.mark.parametrize("other", ["AN ANSWER", "an  answer", "\uff41n answer"])
def test_texts_are_equal_in_their_normal_form(other):
    assert normalise(other) == "an answer" and text_key(other) == text_key("an answer")
