"""Scored pairs as an evaluation set: files of every format, eval splits, and what is held out because of them."""

import json

import pytest

from data_prep.common.errors import BadInput
from data_prep.quality.decontaminate import held_out
from data_prep.quality.gate import _content
from data_prep.reading.retrieval_sets import RetrievalSet, load_evaluation
from data_prep.reading.scored_pairs import ScoredPairs
from data_prep.sharding.build import shard

PAIRS = [("one", "text a", 0.25), ("two", "text b", 1), ("one", "text b", 0)]
FORMS = {
    "arrays.jsonl": "".join(json.dumps(pair) + "\n" for pair in PAIRS),
    "objects.jsonl": "".join(json.dumps(dict(zip(("query", "item", "score"), pair))) + "\n" for pair in PAIRS),
    "list.json": json.dumps([list(pair) for pair in PAIRS]),
    "table.csv": "query,item,score\n" + "".join(f"{q},{i},{s}\n" for q, i, s in PAIRS),
    "records.jsonl": "".join(json.dumps({"query": q, "positives": [i], "score": s}) + "\n" for q, i, s in PAIRS),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_scored_pairs_is_recognised(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name])
    data = load_evaluation(tmp_path / name, by="source")
    assert isinstance(data, ScoredPairs) and not data.binary and data.parts == [data] and data.notes == []
    assert (data.query_texts, data.doc_texts) == (["one", "two"], ["text a", "text b"]), "each text once"
    assert data.pairs == [(0, 0), (1, 1), (0, 1)] and data.scores == [0.25, 1.0, 0.0]
    assert data.categories.members == {name.partition(".")[0]: [0, 1, 2]}


def test_labels_are_scores_of_zero_and_one():
    def of(*scores):
        return ScoredPairs("s", ["q"], ["d"], [(0, 0)] * len(scores), [*scores])

    assert of(0.0, 1.0, 1.0).binary
    assert not of(0.0, 0.5, 1.0).binary and not of(1.0, 1.0).binary


BAD = {
    "none": ('{"query": "a", "positive": "b"}\n', "1 of 1 rows have no score; scored pairs are"),
    "some": ('["a", "b", 0.5]\n{"query": "a", "positive": "b"}\n', "1 of 2 rows have no score"),
    "equal": ('["a", "b", 0.5]\n["a", "c", 0.5]\n', "every pair has the score 0.5: there is nothing to compare"),
    "out": ('["a", "b", 0.5]\n["a", "c", 5]\n', "rows.jsonl:2: key 'score' is 5, outside 0..1"),
    "empty": ("", "the file is empty"),
    "json": ("{oops\n", "rows.jsonl:1: invalid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_none_is_refused_with_the_reason(tmp_path, case):
    text, reason = BAD[case]
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(BadInput) as caught:
        load_evaluation(tmp_path / "rows.jsonl")
    assert reason in str(caught.value)


def test_what_is_no_file_is_read_as_before(tmp_path):
    with pytest.raises(BadInput, match="no such folder; name a retrieval set"):
        load_evaluation(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="corpus.jsonl: missing"):
        load_evaluation(tmp_path)


def split_of(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard([folder / "rows.jsonl"], folder / "shards", eval_fraction=0.5)
    return folder / "shards"


def test_eval_splits_of_pairs_of_both_and_of_one_score(tmp_path):
    graded = [{"query": f"g{i}", "positives": [f"item {i}"], "score": i / 30} for i in range(30)]
    plain = [{"query": f"p{i}", "positives": [f"text {i}"]} for i in range(30)]
    for name in ("graded", "both", "same"):
        (tmp_path / name).mkdir()
    only = load_evaluation(split_of(tmp_path / "graded", graded))
    assert isinstance(only, ScoredPairs) and 1 < len(only.scores) < 30 and only.shards
    both = load_evaluation(split_of(tmp_path / "both", graded + plain))
    assert isinstance(both, RetrievalSet) and len(both.pairs.scores) == both.left_out > 0
    assert "are evaluated separately, by their scores" in both.notes[0]
    with pytest.raises(BadInput, match="holds graded pairs only"):
        load_evaluation(split_of(tmp_path / "same", [row | {"score": 0.5} for row in graded]))


def test_texts_of_scored_pairs_are_held_out_of_training(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(FORMS["arrays.jsonl"])
    texts = {held.text for held in held_out([tmp_path / "pairs.jsonl"]).keys.values()}
    assert texts == {"one", "two", "text a", "text b"}
    rows = [{"query": "TWO", "positives": ["x"]}, {"query": "three", "positives": ["y"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    excluded = [tmp_path / "pairs.jsonl"]
    manifest = shard([tmp_path / "rows.jsonl"], tmp_path / "out", eval_fraction=0.0, exclude=excluded)
    assert manifest["rows"] == {"train": 1}
    before = _content(str(tmp_path / "pairs.jsonl"), {})
    (tmp_path / "pairs.jsonl").write_text(FORMS["arrays.jsonl"].replace("two", "four"))
    assert before and _content(str(tmp_path / "pairs.jsonl"), {}) != before, "the gate's cache sees another file"
