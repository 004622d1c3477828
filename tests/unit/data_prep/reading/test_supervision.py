"""A key that looks like supervision becomes supervision or is refused; it is never metadata."""

import csv
import json

import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.formats import read_records
from data_prep.reading.supervision import role_of
from tests.unit.data_prep.helpers import write_jsonl

PAIR = {"anchor": "a", "positive": "b"}
# (keys beside a pair, negatives, score, teacher_scores)
READ = [
    ({"score": 0.0}, [], 0.0, None),
    ({"label": 1}, [], 1.0, None),
    ({"similarity": 0.25}, [], 0.25, None),
    ({"Similarity Score": 0.25}, [], 0.25, None),
    ({"simScore": 0.25}, [], 0.25, None),
    ({"cosine-similarity": 0.25}, [], 0.25, None),
    ({"cosinesimilarity": 0.25}, [], 0.25, None),
    ({"SCORE": 0.25}, [], 0.25, None),
    ({"ｓｃｏｒｅ": 0.25}, [], 0.25, None),
    ({"relevance": 0}, [], 0.0, None),
    ({"is_duplicate": 0}, [], 0.0, None),
    ({"negative_1": "c", "negative_2": "d"}, ["c", "d"], None, None),
    ({"negative_10": "d", "negative_2": "c"}, ["c", "d"], None, None),
    ({"negative": "c"}, ["c"], None, None),
    ({"neg": "c"}, ["c"], None, None),
    ({"Negative": "c"}, ["c"], None, None),
    ({"negative1": "c", "negative2": "d"}, ["c", "d"], None, None),
    ({"hardNegative1": "c"}, ["c"], None, None),
    ({"hard_neg": "c", "hard negative 3": "d"}, ["c", "d"], None, None),
    ({"negative": "c", "positive_score": 0.9, "negative_score": 0.2}, ["c"], None, [0.9, 0.2]),
    ({"negative": "c", "scores": [0.9, 0.2]}, ["c"], None, [0.9, 0.2]),
    ({"negative_1": "c", "negative_2": "d", "scores": [0.9, 0.2, 0.1]}, ["c", "d"], None, [0.9, 0.2, 0.1]),
    ({"negative_1": "c", "negative_2": "d", "score": [9, -2, 0]}, ["c", "d"], None, [9.0, -2.0, 0.0]),
    (
        {"negative_1": "c", "negative_2": "d", "posScore": 5, "neg_score_2": 2, "neg_score_1": 1},
        ["c", "d"],
        None,
        [5.0, 1.0, 2.0],
    ),
]
LISTS_READ = [
    ({"negatives": ["c", "d"]}, ["c", "d"], None, None),
    ({"hard_negatives": ["c"], "negative": "d"}, ["c", "d"], None, None),
    ({"negs": ["c"], "pos_scores": [0.9], "neg_scores": [0.2]}, ["c"], None, [0.9, 0.2]),
    ({"label": True}, [], 1.0, None),
]
# keys beside a pair -> parts of the message
REFUSED = [
    ({"score": 4.2}, ["key 'score' is 4.2, outside 0..1", "divide by the largest", "rename it"]),
    ({"label": "faq"}, ["key 'label' must be a number, not a text ('faq')", "rename it"]),
    ({"score": 0.5, "label": 1}, ["keys 'score' and 'label' all state scores"]),
    ({"negative": "c", "score": 0.9}, ["key 'score' is one number for 2 documents", "teacher_scores"]),
    ({"negative_1": "c", "negative_2": "d", "label": 1}, ["key 'label' is one number for 3 documents"]),
    ({"negative": "c", "negative_score": 0.2}, ["0 scores of positives and 1 of negatives"]),
    ({"negative_score": 0.2}, ["each document needs one"]),
    ({"negative_1": "c", "negative_3": "d", "negative_score_1": 1, "negative_score_2": 1}, ["not those of the neg"]),
    ({"negative": "c", "scores": [0.9]}, ["key 'scores' has 1 numbers for 2 documents"]),
    ({"bm25_score": 12.5}, ["key 'bm25_score' looks like supervision", "rename it"]),
    ({"answer_score": 3}, ["key 'answer_score' looks like supervision"]),
    ({"positive_2": "c"}, ["key 'positive_2' looks like supervision"]),
    ({"positives": ["c"]}, ["key 'positives' looks like supervision"]),
    ({"negative_ids": ["d7"]}, ["key 'negative_ids' looks like supervision"]),
    ({"hard_negatives": "c"}, ["key 'hard_negatives' must be a list of texts"]),
    ({"negs": "c"}, ["key 'negs' must be a list of texts", "rename it to 'negative'"]),
    ({"negative": 7}, ["key 'negative' must be a text, not a number (7)"]),
    ({"is_negative": True}, ["key 'is_negative' looks like supervision"]),
]
PLAIN = ["lang", "url", "position", "posture", "scoreboard", "labelled_by", "positive_id", "score_type", "pos_tag"]
PLAIN += ["negative_url", "weight", "rating", "neglect", "category", "teacher"]


def one(path):
    (record,) = read_records(path)
    return record.negatives, record.score, record.teacher_scores, record.metadata


def write_table(folder, row, kind):
    """Writes one row as CSV, TSV, Parquet or a `datasets` folder."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind in ("csv", "tsv"):
        with open(folder / f"a.{kind}", "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([row, [json.dumps(v) if isinstance(v, list) else v for v in row.values()]])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), folder / "a.parquet")
    else:
        datasets.Dataset.from_list([row]).save_to_disk(folder / "a.folder")
    return folder / f"a.{kind}"


@pytest.mark.parametrize("more, negatives, score, teacher", READ, ids=lambda value: str(value)[:40])
def test_supervision_is_read_in_every_spelling_and_file_type(tmp_path, more, negatives, score, teacher):
    expected = (negatives, score, teacher, {})
    row = PAIR | more
    assert one(write_jsonl(tmp_path / "a.jsonl", [row])) == expected
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert one(tmp_path / "a.json") == expected
    for kind in ("csv", "tsv", "parquet", "folder"):
        assert one(write_table(tmp_path, row, kind)) == expected, kind


@pytest.mark.parametrize("more, negatives, score, teacher", LISTS_READ, ids=lambda value: str(value)[:40])
def test_lists_and_flags_are_read_where_a_file_can_hold_them(tmp_path, more, negatives, score, teacher):
    row = PAIR | more
    assert one(write_jsonl(tmp_path / "a.jsonl", [row])) == (negatives, score, teacher, {})
    assert one(write_table(tmp_path, row, "parquet")) == (negatives, score, teacher, {})


@pytest.mark.parametrize(
    "row",
    [
        {"query": "a", "pos": ["b"], "negative_1": "c", "pos_scores": [0.9], "neg_scores": [0.2]},
        {"question": "a", "answer": "b", "negative_1": "c", "scores": [0.9, 0.2]},
        {"chunk_id": "1", "question": "a", "answer": "b", "hard_neg": ["c"], "scores": [0.9, 0.2]},
        {"term": "a", "definition": "b", "neg": "c", "labels": [0.9, 0.2]},
        {"query": "a", "positives": ["b"], "negative_1": "c", "scores": [0.9, 0.2]},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_shape_reads_it(tmp_path, row):
    assert one(write_jsonl(tmp_path / "a.jsonl", [row])) == (["c"], None, [0.9, 0.2], {})


@pytest.mark.parametrize("more, parts", REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_read_is_refused_with_its_mend(tmp_path, more, parts):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR | more])
    with pytest.raises(BadInput) as refusal:
        list(read_records(path))
    assert all(part in str(refusal.value) for part in ["a.jsonl:1: ", *parts]), refusal.value


def test_null_negatives_and_empty_cells_state_nothing(tmp_path):
    row = PAIR | {"negative_1": "c", "negative_2": None, "label": None}
    assert one(write_jsonl(tmp_path / "a.jsonl", [row])) == (["c"], None, None, {})
    (tmp_path / "a.csv").write_text("anchor,positive,negative_1,negative_2,score\na,b,,d,\n")
    assert one(tmp_path / "a.csv") == (["d"], None, None, {})


def test_labels_that_pandas_wrote_as_words_are_labels(tmp_path):
    (tmp_path / "a.csv").write_text("anchor,positive,is_duplicate\na,b,False\n")
    assert one(tmp_path / "a.csv") == ([], 0.0, None, {})


def test_other_keys_and_the_rows_own_metadata_stay_metadata(tmp_path):
    plain = dict.fromkeys(PLAIN, "x")
    assert all(role_of(key) is None for key in PLAIN)
    row = PAIR | {"negative": "c", "negative_id": "d7", "metadata": {"score": 7, "label": "faq"}} | plain
    negatives, score, teacher, metadata = one(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (negatives, score, teacher) == (["c"], None, None)
    assert metadata == {"score": 7, "label": "faq", "negative_id": "d7"} | plain


@pytest.mark.parametrize("labels", [[1, 0, 0], [True, False, False], [1.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("names", [("anchor", "positive"), ("query", "positive"), ("question", "answer")], ids=str)
def test_a_labelled_list_is_divided_into_positives_and_negatives(tmp_path, names, labels):
    """sentence-transformers' mine_hard_negatives writes it, with output_format="labeled-list"."""
    row = {names[0]: "q", names[1]: ["b", "c", "d"], "labels": labels}
    (record,) = read_records(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (record.positives, record.negatives, record.teacher_scores) == (["b"], ["c", "d"], None)
    (record,) = read_records(write_table(tmp_path, row, "parquet"))
    assert (record.positives, record.negatives, record.teacher_scores) == (["b"], ["c", "d"], None)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"labels": [3.5, 0.2]}, ["key 'labels' holds other labels than 0 and 1", "'pos' and 'neg'"]),
        ({"labels": [1]}, ["key 'labels' has 1 labels for 2 documents"]),
        ({"labels": [0, 0]}, ["key 'labels' labels no document as relevant"]),
        ({"labels": ["a", None]}, ["key 'labels' holds other labels than 0 and 1"]),
        ({"label": 1}, ["key 'label' is one number for 2 documents"]),
        ({"positive": []}, ["key 'positive' is empty: it needs at least one text"]),
        ({"positive": ["b", 7]}, ["key 'positive[1]' must be a text, not a number (7)"]),
    ],
)
def test_a_labelled_list_that_says_nothing_is_refused(tmp_path, more, parts):
    with pytest.raises(BadInput) as refusal:
        list(read_records(write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": ["b", "c"]} | more])))
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_lists_of_positives_and_negatives_are_read_under_their_singular(tmp_path):
    row = {"anchor": "a", "positive": ["b", "c"], "negative": ["d", "e"], "scores": [4, 3, 2, 1]}
    (record,) = read_records(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (record.positives, record.negatives) == (["b", "c"], ["d", "e"])
    assert record.teacher_scores == [4.0, 3.0, 2.0, 1.0]


CELLS = {
    '["c", "d"]': ["c", "d"],
    '[ "c","d" ]': ["c", "d"],
    "['c', 'd']": ["c", "d"],  # as pandas writes a column of lists
    "[\"it's\", 'd']": ["it's", "d"],
    "[]": [],
}


@pytest.mark.parametrize("key", ["negatives", "hard_negatives", "Hard Negatives"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_list_in_a_cell_is_read(tmp_path, key, cell):
    for kind in ("csv", "tsv"):
        assert one(write_table(tmp_path, PAIR | {key: cell}, kind))[0] == CELLS[cell], kind


@pytest.mark.parametrize(
    "cell", ["['c' 'd']", "['c', 'd'", "[c, d]", '["c" "d"]', "c", "{'c'}", '["c", 7]', "[" * 5000]
)
def test_a_cell_that_is_no_list_of_texts_is_refused(tmp_path, cell):
    """numpy prints a column of arrays without commas, which Python would read as one text."""
    with pytest.raises(BadInput, match="must be a (list of texts|text), not"):
        list(read_records(write_table(tmp_path, PAIR | {"negatives": cell}, "csv")))


def test_a_text_in_brackets_stays_a_text(tmp_path):
    row = {"anchor": "a", "positive": '["b"]', "negative": "[1]"}
    (record,) = read_records(write_table(tmp_path, row, "csv"))
    assert (record.positives, record.negatives) == (['["b"]'], ["[1]"])


def test_a_record_as_it_is_comes_back_from_a_csv(tmp_path):
    row = {
        "query": "q",
        "positives": ["a", "b"],
        "negatives": ["c"],
        "teacher_scores": [3, 2, 1],
        "doc_ids": ["x", "y"],
    }
    (record,) = read_records(write_table(tmp_path, row, "csv"))
    assert {key: getattr(record, key) for key in row} == row
