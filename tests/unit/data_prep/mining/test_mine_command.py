"""Flags, rows and corpora that the mining command refuses, or of which it leaves a part out and says so."""

import pytest

from data_prep.common.errors import BadInput
from data_prep.records import Record
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl
from tests.unit.data_prep.mining.helpers import corpus_of

BAD = {
    "all at once": (
        ["--k", "0", "--margin", "-1", "--relative-margin", "1", "--skip", "2", "--range", "5:5", "--method", "dense"],
        [
            "--k 0",
            "--range 5:5",
            "--margin -1",
            "--relative-margin 1",
            "--skip 2: also",
            "--method dense: needs --model",
        ],
    ),
    "a model that is not used": (["--method", "bm25", "--model", "m"], ["--method bm25: takes no --model"]),
    "flags of a model": (["--max-len", "9", "--query-prompt", "q"], ["--max-len: needs", "--query-prompt: needs"]),
    "two corpora": (["--corpus", "c.jsonl", "--collection", "docs"], ["--corpus and --collection"]),
    "a store without its name": (["--path", "chroma"], ["--path: needs --collection"]),
    "more than the range": (["--k", "9", "--range", "3:8"], ["--k 9: more than the 5 candidates"]),
    "no such corpus": (["--corpus", "nowhere.jsonl"], ["nowhere.jsonl: no such file"]),
    "no such field": (["--same-document", "pages"], ["no text has this field (fields: page)", "Did you mean 'page'?"]),
    "an embedding model": (["--model", "m"], ["--model m: data_prep mines by words", "python -m trainer.mine takes"]),
}


@pytest.mark.parametrize("flags,expected", BAD.values(), ids=BAD)
def test_bad_flags_are_told_together(tmp_path, capsys, flags, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p", "metadata": {"page": 1}}])
    code, _, err = run(capsys, "mine", path, "--output", tmp_path / "o.jsonl", *flags)
    assert code == 2
    for part in expected:
        assert part in err
    assert not (tmp_path / "o.jsonl").exists()


def test_bad_rows_of_inputs_and_corpus_are_told_with_their_lines(tmp_path, capsys):
    good = write_jsonl(
        tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}, {"query": "q"}, {"query": "", "positive": "p"}]
    )
    code, _, err = run(capsys, "mine", good, "--output", tmp_path / "o.jsonl")
    assert code == 2 and "a.jsonl:2:" in err and "a.jsonl:3:" in err
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "x"}, {"id": 2, "txt": "x"}, ["x"], {"text": 1}])
    code, _, err = run(capsys, "mine", good, "--corpus", corpus, "--output", tmp_path / "o.jsonl")
    assert code == 2
    for part in (
        "c.jsonl:2: key 'text' is missing",
        "Did you mean 'txt'?",
        "c.jsonl:3: a document",
        "c.jsonl:4: key 'text' must be a text, not a number (1)",
    ):
        assert part in err
    taught = [{"query": "q", "positives": ["p"], "teacher_scores": [1.0]}]
    code, _, err = run(capsys, "mine", write_jsonl(tmp_path / "t.jsonl", taught), "--output", tmp_path / "o.jsonl")
    assert code == 2 and "1 rows have teacher_scores" in err and "--rescore" in err


EMPTY = {  # file -> its content; the second and the third document have no text
    "corpus.jsonl": '{"id":"a","text":"frost"}\n{"id":"e","text":""}\n{"id":"f","title":null,"text":null}\n',
    "c.json": '[{"_id":"a","text":"frost"},\n{"_id":"e","title":" ","text":" "},\n{"_id":"f","text":"\\t"}]',
    "c.csv": "\ufeffid,title,text\na,,frost\ne,,\nf, ,  \n",
    "c.tsv": "id\ttext\na\tfrost\ne\t\nf\t \n",
}


@pytest.mark.parametrize("name", EMPTY)
def test_documents_without_text_are_left_out_of_a_corpus_and_counted(tmp_path, capsys, name):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).write_text(EMPTY[name], encoding="utf-8")
    corpus = folder if name == "corpus.jsonl" else folder / name
    first = 2 if name != "c.csv" and name != "c.tsv" else 3
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"query": "frost where", "positive": "ice"}])
    call = ("mine", rows, "--corpus", corpus, "--output", tmp_path / "o.jsonl")
    code, _, err = run(capsys, *call)
    assert code == 0, err
    assert f"{name}:{first}: key 'text' is empty; 2 documents without text are left out" in err
    assert read_jsonl(tmp_path / "o.jsonl")[0]["negatives"] == ["frost"]
    code, _, err = run(capsys, *call, "--strict")
    assert code == 2
    assert f"{name}:{first}: key 'text' is empty (refused by --strict) (2 times; also line {first + 1})" in err


def test_an_output_in_place_of_the_corpus_is_refused(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    corpus = tmp_path / "set" / "corpus.jsonl"
    corpus.write_text(EMPTY["corpus.jsonl"], encoding="utf-8")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"query": "frost where", "positive": "ice"}])
    code, _, err = run(capsys, "mine", rows, "--corpus", corpus.parent, "--output", corpus)
    assert code == 2 and f"--output {corpus}: would replace a file of the input {corpus.parent}" in err
    assert corpus.read_text(encoding="utf-8") == EMPTY["corpus.jsonl"]


def test_a_corpus_without_any_text_is_refused(tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"query": "frost where", "positive": "ice"}])
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"id": "a", "text": ""}, {"id": "b", "text": " "}])
    code, _, err = run(capsys, "mine", rows, "--corpus", corpus, "--output", tmp_path / "o.jsonl")
    assert code == 2 and "c.jsonl:1: key 'text' is empty, like those of all 2 rows" in err
    code, _, err = run(capsys, "mine", rows, "--strict", "--output", tmp_path / "o.jsonl")
    assert code == 2 and "--strict: belongs to --corpus" in err


def test_a_corpus_of_one_input_without_others_says_so(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    code, _, err = run(capsys, "mine", path, "--output", tmp_path / "o.jsonl")
    assert code == 0 and "1 of 1 rows got fewer than 2 hard negatives, 1 of them none" in err


def test_an_unknown_metadata_field_is_an_error_of_the_library_too():
    with pytest.raises(BadInput, match="no text has this field"):
        corpus_of([Record("q", ["p"], metadata={"page": 1})], "site")
