"""Metrics equal trec_eval's own output; sets in both layouts; the bootstrap covers what it should."""

import json

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from trainer.config.sections import RunConfig
from trainer.evaluate import main as evaluate
from trainer.evaluation.compare import means, paired_bootstrap
from trainer.evaluation.ranking_metrics import score_run
from trainer.inference.metrics import rank_documents
from trainer.preflight.inputs import Inputs
from trainer.reporting.comparison import SHOWN_HITS, _Side


def read_trec(folder):
    qrels: dict = {}
    for line in (folder / "qrels.test").read_text().splitlines():
        query, _, doc, grade = line.split()
        qrels.setdefault(query, {})[doc] = int(grade)
    run: dict = {}
    for line in (folder / "results.test").read_text().splitlines():
        query, _, doc, _, score, _ = line.split()
        run.setdefault(query, {})[doc] = float(score)
    expected: dict = {}
    for line in (folder / "out.test.aq").read_text().splitlines():
        name, query, value = line.split()
        expected.setdefault(query, {})[name] = value
    return qrels, run, expected


NAMES = {"nDCG@10": "ndcg_cut_10", "MAP": "map", "recall@10": "recall_10", "recall@100": "recall_100"}


@pytest.mark.real_data
def test_metrics_equal_trec_evals_own_output(real_data):
    qrels, run, expected = read_trec(real_data / "trec_eval_ref")
    got = score_run(qrels, run)
    assert len(got) == 3
    for query, values in got.items():
        for ours, theirs in NAMES.items():
            assert f"{values[ours]:.4f}" == f"{float(expected[query][theirs]):.4f}", (query, ours)
        full = float(expected[query]["recip_rank"])
        # trec_eval's reciprocal rank has no cut at 10: below rank 10 ours is 0
        assert f"{values['MRR@10']:.4f}" == (f"{full:.4f}" if full >= 0.1 else "0.0000")
    averages = means(got)
    for ours, theirs in NAMES.items():
        assert averages[ours] == pytest.approx(float(expected["all"][theirs]), abs=1e-4)


def write_set(folder, beir=False):
    docs = [{"id": "a", "title": "T", "text": "one"}, {"id": "b", "title": "", "text": "two"}]
    queries = [{"id": "q", "text": "what"}, {"id": "unjudged", "text": "nothing"}]
    if beir:
        docs = [{"_id": d["id"], "title": d["title"], "text": d["text"]} for d in docs]
        queries = [{"_id": q["id"], "text": q["text"]} for q in queries]
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    if beir:
        (folder / "qrels").mkdir()
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n")
    else:
        (folder / "qrels.tsv").write_text("q\tb\t1\n")
    return folder


@pytest.mark.parametrize("beir", [False, True], ids=["ours", "beir"])
def test_both_layouts_read_alike_and_unjudged_queries_stay_out(tmp_path, beir):
    data = load_set(write_set(tmp_path / "set", beir))
    assert (data.doc_ids, data.doc_texts) == (["a", "b"], ["T\none", "two"])
    assert (data.query_ids, data.qrels) == (["q"], {"q": {"b": 1}})


def test_ranking_is_exact_search(tmp_path):
    data = load_set(write_set(tmp_path / "set"))
    queries, documents = np.array([[1.0, 0.0]], dtype=np.float32), np.array([[0.2, 1], [0.9, 0]], dtype=np.float32)
    run = rank_documents(queries, documents, data)
    assert run["q"] == pytest.approx({"a": 0.2, "b": 0.9})
    assert means(score_run(data.qrels, run))["recall@1"] == 1.0


def test_the_interval_holds_the_difference_and_excludes_zero_where_it_is_clear():
    rng = np.random.default_rng(0)
    before = rng.random(400)
    low, high = paired_bootstrap(before, before + 0.05 + 0.02 * rng.standard_normal(400))
    assert 0.04 < low < 0.05 < high < 0.06
    low, high = paired_bootstrap(before, before + 0.3 * rng.standard_normal(400))
    assert low < 0 < high


BREAKS = {
    "no corpus": lambda f: (f / "corpus.jsonl").unlink(),
    "no queries": lambda f: (f / "queries.jsonl").unlink(),
    "no judgements": lambda f: (f / "qrels.tsv").unlink(),
    "not JSON": lambda f: (f / "corpus.jsonl").write_text("{oops\n"),
    "no id": lambda f: (f / "queries.jsonl").write_text('{"text": "x"}\n'),
    "id twice": lambda f: (f / "corpus.jsonl").write_text('{"id":"a","text":"x"}\n{"id":"a","text":"y"}\n'),
    "unknown document": lambda f: (f / "qrels.tsv").write_text("q\tzzz\t1\n"),
    "unknown query": lambda f: (f / "qrels.tsv").write_text("zzz\ta\t1\n"),
    "grade not a number": lambda f: (f / "qrels.tsv").write_text("q\ta\tgood\n"),
    "nothing relevant": lambda f: (f / "qrels.tsv").write_text("q\ta\t0\n"),
    "empty text": lambda f: (f / "corpus.jsonl").write_text('{"id":"a","text":" "}\n{"id":"b","text":""}\n'),
}
WORDS = {
    "no corpus": "corpus.jsonl: missing",
    "no queries": "queries.jsonl: missing",
    "no judgements": "qrels.tsv: missing",
    "not JSON": "corpus.jsonl:1: not JSON",
    "no id": "queries.jsonl:1: needs the keys",
    "id twice": "corpus.jsonl:2: id 'a' stands twice",
    "unknown document": "qrels.tsv:1: document 'zzz'",
    "unknown query": "qrels.tsv:1: query 'zzz'",
    "grade not a number": "qrels.tsv:1: needs query id",
    "nothing relevant": "no query has a relevant document",
    "empty text": "corpus.jsonl:1: text of 'a' is empty",
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_set_names_file_and_line(tmp_path, case):
    folder = write_set(tmp_path / "set")
    BREAKS[case](folder)
    with pytest.raises(BadInput) as caught:
        load_set(folder)
    assert WORDS[case] in str(caught.value)


def add(folder, name, text):
    path = folder / name
    path.write_text(path.read_text() + text, encoding="utf-8")


LEFT = "judgements of such queries are left out"
UNSEEN = "judgements of such documents count as not retrieved"
# flaw -> file, what is added to it, the note; each as published sets have it
FLAWS = {
    "NFCorpus": ("qrels.tsv", "x1\ta\t1\nx2\tb\t2\n", f"qrels.tsv:2: query 'x1' is not in queries.jsonl; 2 {LEFT}"),
    "FiQA": (
        "corpus.jsonl",
        '{"id":"e","title":"","text":""}\n{"id":"f","text":" "}\n{"id":"g","text":"\\u200b\\ufeff"}\n',
        "corpus.jsonl:3: text of 'e' is empty; 3 documents without text are left out",
    ),
    "null": (
        "corpus.jsonl",
        '{"id":null,"_id":"e","title":null,"text":null}\n',
        "corpus.jsonl:3: text of 'e' is empty; 1 documents without text are left out",
    ),
    "empty query": (
        "queries.jsonl",
        '{"id":"e","text":""}\n',
        "queries.jsonl:3: text of 'e' is empty; 1 queries without text are left out",
    ),
    "a cut corpus": ("qrels.tsv", "q\tzz\t1\n", f"qrels.tsv:2: document 'zz' is not in corpus.jsonl; 1 {UNSEEN}"),
    "repeated": (
        "corpus.jsonl",
        '{"id":"b","title":"","text":"two"}\n',
        "corpus.jsonl:3: id 'b' stands twice with the same text; 1 rows that repeat one are left out",
    ),
    "judged twice": (
        "qrels.tsv",
        "q\tb\t1\nq\tb\t2\n",
        "qrels.tsv:3: document 'b' has another grade for 'q' above; "
        "1 judgements replace an earlier one of the same documents",
    ),
}


@pytest.mark.parametrize("case", FLAWS)
def test_a_set_with_flaws_is_read_and_they_are_counted(tmp_path, case):
    folder = write_set(tmp_path / "set")
    name, added, note = FLAWS[case]
    add(folder, name, added)
    data = load_set(folder)
    assert data.notes == [f"{folder}/{note}"]
    assert (data.doc_ids, data.doc_texts, data.query_ids) == (["a", "b"], ["T\none", "two"], ["q"])
    grade = 2 if case == "judged twice" else 1
    assert data.qrels == {"q": {"b": grade} | ({"zz": 1} if case == "a cut corpus" else {})}
    with pytest.raises(BadInput) as caught:
        load_set(folder, strict=True)
    assert str(caught.value) == f"{folder}/{note} (refused by --strict)"


def test_judgements_of_empty_texts(tmp_path):
    folder = write_set(tmp_path / "set")
    add(folder, "corpus.jsonl", '{"id":"e","text":""}\n')
    add(folder, "queries.jsonl", '{"id":"eq","text":""}\n')
    add(folder, "qrels.tsv", "q\te\t1\neq\ta\t1\n")
    data = load_set(folder)
    assert data.notes[2:] == [
        f"{folder}/qrels.tsv:2: document 'e' has no text; 1 {UNSEEN}",
        f"{folder}/qrels.tsv:3: query 'eq' has no text; 1 {LEFT}",
    ]
    run = rank_documents(np.eye(2, dtype=np.float32)[1:], np.eye(2, dtype=np.float32), data)
    assert means(score_run(data.qrels, run))["recall@10"] == 0.5, "as trec_eval counts a document that no search finds"


def test_a_good_set_passes_strict_without_a_note(tmp_path):
    assert load_set(write_set(tmp_path / "set"), strict=True).notes == []


@pytest.mark.parametrize("beir", [False, True], ids=["ours", "beir"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_is_no_part_of_a_set(tmp_path, beir, ends):
    folder = write_set(tmp_path / "set", beir)
    plain = load_set(folder)
    for path in (*folder.glob("*.*"), *folder.glob("qrels/*")):
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8", newline=ends)
    marked = load_set(folder, strict=True)
    assert marked == plain and marked.notes == []


@pytest.mark.parametrize(("grade", "read"), [("1.0", 1), ("2.", 2), (" 3 ", 3), ("+1", 1)])
def test_whole_grades_in_other_spellings(tmp_path, grade, read):
    folder = write_set(tmp_path / "set")
    (folder / "qrels.tsv").write_text(f"q\tb\t{grade}\n")
    assert load_set(folder).qrels == {"q": {"b": read}}


@pytest.mark.parametrize("grade", ["0.5", "\u00b2", "--1", "nan", "inf", "1e3", ""])
def test_what_is_no_whole_grade(tmp_path, grade):
    folder = write_set(tmp_path / "set")
    (folder / "qrels.tsv").write_text(f"q\tb\t{grade}\n", encoding="utf-8")
    with pytest.raises(BadInput, match="qrels.tsv:1: needs query id, document id and a whole grade"):
        load_set(folder)


def test_an_id_of_judgements_may_hold_a_line_separator_of_unicode(tmp_path):
    name = "a\u2028b\x85c\x1dd"
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": name, "text": "t"}) + "\n")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"id": "q", "text": "t"}) + "\n")
    (tmp_path / "qrels.tsv").write_text(f"q\t{name}\t1\n", encoding="utf-8")
    assert load_set(tmp_path).qrels == {"q": {name: 1}}


# --- queries that are documents ---


def write_arguments(folder, titled=False):
    """Like ArguAna: every query is a document, of the same id, and asks for the other one."""
    folder.mkdir()
    texts = {"a-pro": "w1 w2 w3 w4", "a-con": "w9 w8 w7 w6"}  # words of the tiny models
    title = "On taxes" if titled else ""
    docs = [{"_id": name, "title": title, "text": text} for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    queries = [{"_id": name, "text": f" {text}\n"} for name, text in texts.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na-pro\ta-con\t1\na-con\ta-pro\t1\n")
    return folder


@pytest.mark.parametrize("titled", [False, True])
def test_the_document_of_the_querys_id_is_ignored_on_demand(tmp_path, titled):
    folder = write_arguments(tmp_path / "arguana", titled)
    vectors = np.array([[1.0, 0.0], [0.9, 0.1]], dtype=np.float32)
    data = load_set(folder)
    assert means(score_run(data.qrels, rank_documents(vectors, vectors, data)))["nDCG@10"] < 0.9
    (note,) = data.notes
    assert note.startswith(
        "arguana: 2 of 2 queries have the id of a document, 2 of them its text; it is ranked like any"
    )
    data = load_set(folder, ignore_identical_ids=True)
    run = rank_documents(vectors, vectors, data)
    assert {query: list(docs) for query, docs in run.items()} == {"a-pro": ["a-con"], "a-con": ["a-pro"]}
    assert means(score_run(data.qrels, run))["nDCG@10"] == 1.0
    assert data.notes == [
        "arguana: 2 of 2 queries have the id of a document, which is not retrieved for them (BEIR's rule)"
    ]


def test_numbers_that_coincide_are_said_to_be_other_texts(tmp_path):
    folder = write_set(tmp_path / "set")
    add(folder, "queries.jsonl", '{"id":"a","text":"another text"}\n')
    add(folder, "qrels.tsv", "a\tb\t1\n")
    assert "1 of 2 queries have the id of a document, 0 of them its text" in load_set(folder).notes[0]
    assert load_set(write_set(tmp_path / "other"), ignore_identical_ids=True).notes == []


@pytest.mark.parametrize("depth", [1, 3, 20])
def test_ignoring_is_what_beir_does(tmp_path, monkeypatch, depth):
    """BEIR searches one document more and takes out the query's own; ids differ by case only here."""
    monkeypatch.setattr("trainer.inference.metrics.DEPTH", depth)
    rng = np.random.default_rng(depth)
    ids = ["a", "A", "b", "B", "c", "C", "d", "D"]
    queries, documents = rng.standard_normal((4, 5)), rng.standard_normal((8, 5))
    named = ["A", "b", "z", "C"]
    data = RetrievalSet("s", ids, ids, named, named, {}, ignore_identical_ids=True)
    run = rank_documents(queries, documents, data)
    for name, scores in zip(named, queries @ documents.T):
        best = sorted(zip(scores.tolist(), ids), reverse=True)[: depth + 1]
        assert run[name] == pytest.approx(
            {doc: score for score, doc in [one for one in best if one[1] != name][:depth]}
        )


def test_a_query_whose_own_document_is_the_only_one_finds_nothing(tmp_path):
    vector = np.ones((1, 1), np.float32)
    data = RetrievalSet("s", ["a"], ["t"], ["a"], ["t"], {"a": {"a": 1}}, ignore_identical_ids=True)
    assert set(means(score_run(data.qrels, rank_documents(vector, vector, data))).values()) == {0.0}


def test_evaluate_ignores_identical_ids_and_refuses_flaws_on_demand(tmp_path, tiny_bert, capsys):
    folder, out = write_arguments(tmp_path / "arguana"), tmp_path / "out.json"
    call = ["--model", str(tiny_bert), "--data", str(folder), "--json", str(out), "--device", "cpu"]
    assert evaluate(call) == 0
    assert json.loads(out.read_text())["metrics"]["nDCG@10"] == pytest.approx(1 / np.log2(3))
    assert "2 of 2 queries have the id of a document" in capsys.readouterr().err
    assert evaluate([*call, "--ignore-identical-ids"]) == 0
    result = json.loads(out.read_text())
    assert (result["metrics"]["nDCG@10"], result["ignored_identical_ids"]) == (1.0, 2)
    add(folder, "corpus.jsonl", '{"_id":"e","title":"","text":""}\n')
    assert evaluate(call) == 0
    assert "corpus.jsonl:3: text of 'e' is empty; 1 documents without text are left out" in capsys.readouterr().err
    assert evaluate([*call, "--strict"]) == 2
    assert "refused by --strict" in capsys.readouterr().err
    plain = ["--model", str(tiny_bert), "--data", str(write_set(tmp_path / "plain")), "--device", "cpu"]
    assert evaluate([*plain, "--ignore-identical-ids"]) == 0
    assert "--ignore-identical-ids changes nothing" in capsys.readouterr().err


def test_a_run_file_sets_the_rule_for_its_evaluations(tmp_path):
    folder = write_arguments(tmp_path / "arguana")
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "t", "eval": str(folder)}}
    for rule in (False, True):
        values["data"]["ignore_identical_ids"] = rule
        inputs = Inputs(RunConfig.model_validate(values))
        assert inputs.eval_set(str(folder)).ignore_identical_ids == rule
        assert "have the id of a document" in inputs.eval_notes[0]


def test_the_report_shows_no_ignored_document():
    side = _Side.__new__(_Side)
    side.queries, side.documents, side.ignored = np.eye(1, 3), np.eye(4, 3), {0: 0}
    assert [number for number, _ in side.best(0)] == [1, 2, 3][:SHOWN_HITS]
    side.ignored = {}
    assert side.best(0)[0] == (0, 1.0)


# --- the order of ties; eval splits ---


def test_the_reciprocal_rank_is_cut_at_ten_with_ties_in_trec_evals_order():
    run = {"q": {f"d{i:02}": 1.0 - i / 100 for i in range(12)}, "tied": {"a": 0.5, "b": 0.5}}
    got = score_run({"q": {"d10": 1}, "tied": {"a": 1}}, run)
    assert got["q"]["MRR@10"] == 0.0  # rank 11
    assert got["q"]["MAP"] == pytest.approx(1 / 11)
    assert got["tied"]["MRR@10"] == 0.5  # of two equal scores the later id comes first


def shards_with_eval(folder, graded: int, plain: int):
    """Only the eval split is looked at; a part of the rows lands in it."""
    rows = [{"query": f"g{i}", "positives": [f"item {i}"], "score": 0.5} for i in range(graded)]
    rows += [{"query": f"q{i}", "positives": [f"text {i}"]} for i in range(plain)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard([folder / "rows.jsonl"], folder / "shards", eval_fraction=0.5)
    return folder / "shards"


def test_graded_pairs_of_an_eval_split_are_left_out_and_counted(tmp_path):
    folder = shards_with_eval(tmp_path, 20, 20)
    rows = list(open_shards(folder).split("eval"))
    scored = [record for record in rows if record.score is not None]
    data = load_set(folder)
    assert 0 < len(scored) == data.left_out < len(rows)
    assert sorted(data.query_texts) == sorted(record.query for record in rows if record.score is None)
    (note,) = data.notes
    assert f": {len(scored)} graded pairs, which do not say what is relevant, are not evaluated, because " in note
    assert note.endswith("their scores are equal")
    assert data.pairs is None


def test_an_eval_split_of_graded_pairs_alone_is_no_retrieval_set(tmp_path):
    folder = shards_with_eval(tmp_path, 20, 0)
    with pytest.raises(BadInput, match="holds graded pairs only"):
        load_set(folder)
    values = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": str(folder)}}
    assert Inputs(RunConfig.model_validate(values)).eval_paths == {}
    other = tmp_path / "other"
    other.mkdir()
    values["data"]["train"] = str(shards_with_eval(other, 20, 20))
    assert Inputs(RunConfig.model_validate(values)).eval_paths == {"": values["data"]["train"]}
