"""Mining: what ranks, what may never be chosen, and what a margin leaves out, against closed forms and brute force."""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput, Failed
from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus
from data_prep.mining.choice import Choice
from data_prep.mining.mine import Mining, mine
from data_prep.mining.miner import Miner, add_hard_negatives
from data_prep.mining.ranker import best
from data_prep.mining.vector_cache import VectorCache
from data_prep.records import PARENT, PARENT_QUERY, Record, text_key
from tests.launching import ROOT, environment
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl, write_records
from tests.unit.data_prep.mining.helpers import Planted, at_cosine, corpus_of, dense_of

QUICK = settings(max_examples=40, deadline=None)


# --- ranking ---


@QUICK
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(1, 45))
def test_best_is_a_stable_sort(values, count):
    scores = np.array(values, np.float32)
    scores[scores == -4] = -np.inf
    expected = [i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf][:count]
    assert best(scores, count).tolist() == expected


def okapi(query: list[str], text: list[str], texts: list[list[str]], k1: float = 1.5, b: float = 0.75) -> float:
    """Robertson and Zaragoza 2009, with Lucene's idf and without the constant k1 + 1."""
    mean, total = sum(map(len, texts)) / len(texts), 0.0
    for word in query:
        holding = sum(word in other for other in texts)
        count = text.count(word)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        total += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
    return total


def test_bm25_is_the_formula_and_ranks_what_brute_force_ranks():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(60)]
    queries = [" ".join(rng.choice(words, 3, replace=False)) for _ in range(20)] + ["unknown words"]
    corpus = Corpus()
    for i, text in enumerate(texts):
        corpus.add(text, f"d{i}", {})
    corpus.seal()
    ranker, everywhere = Bm25(corpus), np.arange(len(corpus.texts))
    banned = [np.array([i, i + 20]) for i in range(20)] + [np.array([0])]
    split = [text.split() for text in corpus.texts]
    for query, places, ranked, scores in zip(
        queries, banned, ranker.rank(queries, banned, 10), ranker.scores(queries, [everywhere] * len(queries))
    ):
        expected = [okapi(query.split(), text, split) for text in split]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        free = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0 and i not in places]
        assert ranked.places.tolist() == free[:10]
        last = scores[free[9]] if len(free) >= 10 else 0.0
        assert ranked.banned == sum(scores[i] > last for i in places)


@pytest.mark.parametrize("approximate_above", [10**9, 0], ids=["exact", "index of everything"])
def test_dense_ranks_what_brute_force_ranks(tmp_path, approximate_above, monkeypatch):
    monkeypatch.setattr(
        "data_prep.mining.dense_search.SCORES_AT_ONCE", 7 * 300
    )  # several blocks of queries, and of passages
    monkeypatch.setattr("data_prep.mining.dense_search.GATHERED", 64)
    encoder, corpus = Planted(size=16), Corpus()
    for i in range(300):
        corpus.add(f"text {i}", f"d{i}", {})
    corpus.seal()
    queries = [f"query {i}" for i in range(25)]
    rng = np.random.default_rng(1)
    banned = [np.sort(rng.choice(300, 12, replace=False)) for _ in queries]
    with closing(VectorCache(tmp_path, "passages", 16, encoder.passages, 50)) as earlier:  # in another order on disk
        earlier.rows(corpus.texts[200:] + corpus.texts[:50])
    ranker = dense_of(corpus, encoder, tmp_path, approximate_above)
    vectors = np.stack([encoder[text] for text in corpus.texts])
    for query, places, ranked in zip(queries, banned, ranker.rank(queries, banned, 20)):
        scores = vectors @ encoder[query]
        free = [i for i in np.argsort(-scores) if i not in places][:20]
        assert ranked.places.tolist() == free
        assert ranked.banned == sum(scores[i] > scores[free[-1]] for i in places)
    shuffled = [rng.permutation(300)[:9] for _ in queries]
    for query, places, scores in zip(queries, shuffled, ranker.scores(queries, shuffled)):
        np.testing.assert_allclose(scores, vectors[places] @ encoder[query], rtol=1e-5, atol=1e-6)


def test_the_index_finds_what_exact_search_finds(tmp_path):
    """Recall of the 50 best among 4,000 clustered embeddings, and their exact scores."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    texts = [f"text {i}" for i in range(4000)]
    drawn = centres[rng.integers(0, 40, 4000)] + 0.5 * rng.standard_normal((4000, 32))
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    queries = [f"query {i}" for i in range(100)]
    asked = vectors[rng.choice(4000, 100, replace=False)]
    encoder = Planted(dict(zip(texts, vectors)) | dict(zip(queries, asked)), size=32)
    corpus = Corpus()
    for text in texts:
        corpus.add(text, text, {})
    corpus.seal()
    ranker = dense_of(corpus, encoder, tmp_path, approximate_above=3999)
    nothing = [np.empty(0, np.int64)] * 100
    found = [ranked.places for ranked in ranker.rank(queries, nothing, 50)]
    exact = np.argsort(-(asked @ vectors.T), axis=1)[:, :50]
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 50 for a, b in zip(found, exact)])
    assert recall >= 0.97
    for query, places in zip(asked, found):
        scores = vectors[places] @ query
        assert (np.diff(scores) <= 1e-6).all()


# --- what may never be chosen ---

WORDS = st.sampled_from(["mould", "wall", "damp", "window", "air", "frost"])
TEXTS = st.sampled_from([f"{a}{b}" for a in ("mould", "damp", "frost") for b in ("", " wall", " on the wall", " air")])
ROWS = st.lists(
    st.builds(
        lambda query, positives, doc, page, negatives, parent: Record(
            query,
            positives,
            negatives,
            doc_ids=[doc] * len(positives),
            metadata={"page": page} | ({PARENT: "x", PARENT_QUERY: parent} if parent else {}),
        ),
        TEXTS,
        st.lists(TEXTS, min_size=1, max_size=2),
        WORDS,
        st.integers(0, 3),
        st.lists(TEXTS, max_size=1),
        st.none() | TEXTS,
    ),
    min_size=1,
    max_size=12,
)


@QUICK
@given(ROWS, st.sampled_from(["bm25", "dense", "both"]), st.booleans(), st.booleans())
def test_a_forbidden_text_is_never_chosen(rows, method, margin, approximate):
    """Not a row's own positive, query or negative; not a positive of an equal query, of a variant's parent or of
    another variant; not a text of the same document or page."""
    given_negatives = [list(record.negatives) for record in rows]
    corpus, encoder = corpus_of(rows, "page"), Planted()
    choice = Choice(3, 0, 5, margin=0.01 if margin else None)
    with tempfile.TemporaryDirectory() as folder:
        rankers = [Bm25(corpus)] if method != "dense" else []
        if method != "bm25":
            rankers.append(dense_of(corpus, encoder, Path(folder), 0 if approximate else 10**9))
        Miner(corpus, choice, rankers).add(rows)

    def asked(record):
        return text_key(record.metadata.get(PARENT_QUERY, record.query))

    for record, before in zip(rows, given_negatives):
        assert record.negatives[: len(before)] == before
        mined = [text_key(text) for text in record.negatives[len(before) :]]
        assert len(set(mined)) == len(mined) <= 3
        same = [other for other in rows if asked(other) == asked(record)]
        same += [other for other in rows if other.doc_ids[0] == record.doc_ids[0]]
        same += [other for other in rows if other.metadata["page"] == record.metadata["page"]]
        forbidden = {text_key(record.query), *map(text_key, before)}
        forbidden |= {text_key(text) for other in [record, *same] for text in other.positives}
        assert forbidden.isdisjoint(mined)


def test_a_document_is_its_id_in_rows_and_corpus_alike(tmp_path, capsys):
    corpus = write_jsonl(
        tmp_path / "c.jsonl",
        [
            {"id": "d1", "title": "Frost", "text": "frost on the window", "page": 1},
            {"_id": "d2", "text": "frost on the wall", "page": 2},
            {"id": "d3", "text": "frost in the air", "page": 1},
            {"id": 4, "text": "A  FROST on damp wood", "page": 3},
        ],
    )
    row = {"query": "frost where", "positives": ["walls sweat"], "doc_ids": ["d2"], "metadata": {"page": 1}}
    rows = write_jsonl(tmp_path / "a.jsonl", [row, row | {"query": "a frost on damp wood", "metadata": {"page": 9}}])
    out = tmp_path / "o.jsonl"
    assert run(capsys, "mine", rows, "--corpus", corpus, "--output", out, "--k", "4")[0] == 0
    assert [sorted(found["negatives"]) for found in read_jsonl(out)] == [
        ["A  FROST on damp wood", "Frost\nfrost on the window", "frost in the air"],
        ["Frost\nfrost on the window", "frost in the air"],  # the query itself is none
    ]
    flags = ("--corpus", corpus, "--same-document", "page", "--k", "2")
    code, _, err = run(capsys, "mine", rows, "--output", out, *flags)
    assert code == 0
    assert read_jsonl(out)[0]["negatives"] == ["A  FROST on damp wood"]
    assert "1 of 2 rows got fewer than 2 hard negatives, 0 of them none" in err


def test_chunks_whose_ids_differ_in_case_are_different_documents(tmp_path, capsys):
    corpus = write_jsonl(
        tmp_path / "c.jsonl", [{"id": name, "text": f"frost {i}"} for i, name in enumerate(("x1", "X1", "\uff581"))]
    )
    rows = write_jsonl(tmp_path / "a.jsonl", [{"query": "frost", "positives": ["ice"], "doc_ids": ["X1"]}])
    out = tmp_path / "o.jsonl"
    assert run(capsys, "mine", rows, "--corpus", corpus, "--output", out, "--k", "3")[0] == 0
    assert sorted(read_jsonl(out)[0]["negatives"]) == ["frost 0", "frost 2"]


# --- margins ---


def mined_at(tmp_path, cosines: dict[str, float], positives: dict[str, float], choice: Choice):
    """Returns the choice for a query whose positives and candidates have these cosines to it; and the counts."""
    texts = cosines | positives
    vectors = {text: at_cosine(c, axis=1 + i % 7) for i, (text, c) in enumerate(texts.items())}
    encoder = Planted(vectors | {"q:asked": at_cosine(1.0)})
    rows = [Record("asked", list(positives)), *(Record(f"other {i}", [text]) for i, text in enumerate(cosines))]
    corpus = corpus_of(rows)
    miner = Miner(corpus, choice, [dense_of(corpus, encoder, tmp_path)])
    miner.add(rows[:1])
    return rows[0].negatives, miner.counts


CANDIDATES = {"a": 0.95, "b": 0.801, "c": 0.759, "d": 0.7, "e": 0.5, "f": -0.2}


@pytest.mark.parametrize(
    ("settings", "expected", "dropped"),
    [
        ({}, ["a", "b", "c"], 0),
        ({"margin": 0.0}, ["c", "d", "e"], 2),
        ({"relative_margin": 0.0}, ["c", "d", "e"], 2),
        ({"relative_margin": 0.05}, ["c", "d", "e"], 2),  # 95 % of 0.8 is 0.76
        ({"relative_margin": 0.06}, ["d", "e", "f"], 3),
        ({"margin": 0.2}, ["e", "f"], 4),
        ({"margin": 0.09, "relative_margin": 0.05}, ["d", "e", "f"], 3),
        ({"first": 2, "stop": 5}, ["c", "d", "e"], 0),
        ({"first": 1, "stop": 4, "margin": 0.0}, ["c", "d"], 1),
    ],
)
def test_margins_are_their_closed_form(tmp_path, settings, expected, dropped):
    found, counts = mined_at(tmp_path, CANDIDATES, {"pos": 0.8}, Choice(3, **settings))
    assert found == expected
    assert counts.margin == dropped
    assert counts.skipped == settings.get("first", 0)
    assert counts.fewer == (len(expected) < 3)


def test_the_lowest_positive_decides_and_a_negative_score_keeps_its_sign(tmp_path):
    assert mined_at(tmp_path / "a", CANDIDATES, {"p": 0.9, "q": 0.6}, Choice(3, margin=0.0))[0] == ["e", "f"]
    low = Choice(3, relative_margin=0.5)
    assert low.limit(np.array([-0.1])) == pytest.approx(-0.15)
    assert mined_at(tmp_path / "b", CANDIDATES, {"p": -0.1}, low)[0] == ["f"]


def test_planted_false_negatives_are_left_out_by_the_margin(tmp_path):
    """200 queries, each with a second answer as near as the positive (cosine 0.8 ± 0.01), and 5 of another matter."""
    rng = np.random.default_rng(0)
    vectors, rows, answers = {}, [], set()
    for i in range(200):
        axis = rng.standard_normal(64)
        axis /= np.linalg.norm(axis)

        def near(cosine: float, axis=axis) -> np.ndarray:
            other = rng.standard_normal(64)
            other -= (other @ axis) * axis
            return (cosine * axis + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)).astype(np.float32)

        vectors[f"q:query {i}"] = axis.astype(np.float32)
        texts = {f"positive {i}": 0.8, f"answer {i}": 0.8 + 0.01 * rng.uniform(-1, 1)}
        texts |= {f"near {i} {n}": 0.55 for n in range(5)}
        vectors |= {text: near(cosine) for text, cosine in texts.items()}
        answers.add(f"answer {i}")
        rows.append(Record(f"query {i}", [f"positive {i}"]))
    corpus = Corpus()
    for text in vectors:
        if not text.startswith("q:"):
            corpus.add(text, text, {})
    for record in rows:
        corpus.add_row(record, choose=False)
    corpus.seal()
    ranker = dense_of(corpus, Planted(vectors, 64), tmp_path)
    plain = [Record(record.query, record.positives) for record in rows]
    Miner(corpus, Choice(4), [ranker]).add(plain)
    assert sum(not answers.isdisjoint(record.negatives) for record in plain) == 200
    miner = Miner(corpus, Choice(4, relative_margin=0.05), [ranker])
    miner.add(rows)
    assert sum(not answers.isdisjoint(record.negatives) for record in rows) == 0
    assert (miner.counts.margin, miner.counts.fewer) == (200, 0)
    assert all(text.startswith("near") for record in rows for text in record.negatives)


def test_both_takes_turns_and_what_one_skips_the_other_leaves_out(tmp_path):
    rows = [
        Record("oak leaf", ["p"]),
        *(Record(f"r{i}", [text]) for i, text in enumerate(["oak leaf x", "oak y y", "m", "n"])),
    ]
    cosines = {"oak leaf x": 0.1, "oak y y": 0.2, "m": 0.7, "n": 0.6, "p": 0.65}
    encoder = Planted(
        {t: at_cosine(c, axis=1 + i) for i, (t, c) in enumerate(cosines.items())} | {"q:oak leaf": at_cosine(1.0)}
    )
    corpus = corpus_of(rows)
    rankers = [Bm25(corpus), dense_of(corpus, encoder, tmp_path)]

    def chosen(choice):
        record = Record("oak leaf", ["p"])
        Miner(corpus, choice, rankers).add([record])
        return record.negatives

    assert chosen(Choice(4)) == ["oak leaf x", "m", "oak y y", "n"]
    assert chosen(Choice(4, first=1)) == ["oak y y", "n"]
    assert chosen(Choice(4, margin=0.0)) == ["oak leaf x", "oak y y", "n"]  # the model's scores judge both


# --- what is kept on disk ---


def test_a_cache_holds_each_text_once_and_survives_what_a_kill_leaves(tmp_path):
    texts = [f"text {i}" for i in range(10)]

    def computing(stop_after: int):
        encoder = Planted()

        def compute(some):
            if len(encoder.asked) >= stop_after:
                raise KeyboardInterrupt
            return encoder.passages(some)

        return encoder, compute

    encoder, compute = computing(8)
    with closing(VectorCache(tmp_path, "passages", 8, compute, 4)) as cache, pytest.raises(KeyboardInterrupt):
        cache.rows(texts + texts[:3])
    assert encoder.asked == texts[:8]
    with open(tmp_path / "passages.f32", "ab") as handle:
        handle.write(b"half a vector")
    with open(tmp_path / "passages.keys", "ab") as handle:
        handle.write(b"key")
    encoder, compute = computing(99)
    with closing(VectorCache(tmp_path, "passages", 8, compute, 4)) as cache:
        rows = cache.rows(texts + texts[:3])
        assert encoder.asked == texts[8:]
        np.testing.assert_array_equal(cache.all[rows], [encoder[text] for text in texts + texts[:3]])
        with pytest.raises(Failed, match="another process"):
            VectorCache(tmp_path, "passages", 8, compute, 4)
    with closing(VectorCache(tmp_path, "passages", 8, compute, 4)) as cache:
        assert len(cache) == 10


def test_a_model_that_gives_no_numbers_is_told(tmp_path):
    encoder = Planted({"bad": np.full(8, np.nan, np.float32)})
    with (
        closing(VectorCache(tmp_path, "passages", 8, encoder.passages, 4)) as cache,
        pytest.raises(Failed, match="bad"),
    ):
        cache.rows(["good", "bad"])


KILLED = """
import sys
from pathlib import Path
from data_prep.mining.mine import Mining, mine
from tests.unit.data_prep.mining.helpers import Planted
mine([Path(sys.argv[1])], Path(sys.argv[2]), Mining("dense"), encoder=Planted())
"""


def test_a_killed_run_goes_on_and_gives_the_same_output(tmp_path, capsys):
    rows = [Record(f"query {i}", [f"text {i}"]) for i in range(4000)]
    path, out = write_records(tmp_path / "rows.jsonl", rows), tmp_path / "o.jsonl"
    kept = tmp_path / ".o.jsonl.mining"
    command = [sys.executable, "-c", KILLED, str(path), str(out)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not any(file.stat().st_size for file in kept.glob("*/passages.keys")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    encoder = Planted()
    mine([path], out, Mining("dense"), encoder=encoder)
    said = capsys.readouterr().err
    found = re.search(r"embedding passages: ([\d,]+) of 4,000 are there from an earlier run", said)
    there = int(found[1].replace(",", ""))
    assert there >= 512
    assert sum(text.startswith("text") for text in encoder.asked) == 4000 - there
    assert not kept.exists()
    first = out.read_bytes()
    mine([path], out, Mining("dense"), encoder=Planted())
    assert out.read_bytes() == first


# --- compose and the command line ---


def test_compose_and_mine_choose_the_same_negatives(tmp_path, capsys):
    rows = [Record(f"frost {w}", [f"{w} and frost on oak {i}"]) for i, w in enumerate(["air", "wall", "damp", "mould"])]
    path = write_records(tmp_path / "a.jsonl", rows)
    assert run(capsys, "compose", path, "--output", tmp_path / "c.jsonl", "--hard-k", "2")[0] == 0
    assert run(capsys, "mine", path, "--output", tmp_path / "m.jsonl", "--k", "2")[0] == 0
    assert read_jsonl(tmp_path / "c.jsonl") == read_jsonl(tmp_path / "m.jsonl")
    add_hard_negatives(rows, 2, "again")
    assert [record.negatives for record in rows] == [row["negatives"] for row in read_jsonl(tmp_path / "m.jsonl")]


def test_several_inputs_share_one_pool_and_keep_their_sources(tmp_path, capsys):
    one = write_records(tmp_path / "one.jsonl", [Record("frost wall", ["frost on a wall"])])
    two = write_records(
        tmp_path / "two.jsonl", [Record("frost wood", ["frost on wood"]), Record("x", ["y"], score=0.5)]
    )
    out = tmp_path / "o.jsonl"
    code, printed, err = run(capsys, "mine", one, two, "--output", out, "--k", "1")
    assert code == 0
    assert [(row["source"], row["negatives"]) for row in read_jsonl(out)] == [
        ("one", ["frost on wood"]),
        ("two", ["frost on a wall"]),
        ("two", []),
    ]
    assert "1 rows with a score get no hard negatives" in err
    assert "3 records with 2 mined hard negatives" in printed
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


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
    (tmp_path / name).write_text(EMPTY[name], encoding="utf-8")
    corpus = tmp_path if name == "corpus.jsonl" else tmp_path / name
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


# --- sampling ---


@given(st.integers(0, 80), st.integers(1, 12), st.text(max_size=5))
def test_a_sample_has_k_of_the_candidates_in_their_order(count, k, row):
    for sampling in ("top", "random", "spread"):
        taken = Choice(k, sampling=sampling).sample(iter(range(count)), row)
        assert taken == sorted(set(taken)) and len(taken) == min(k, count)
        assert set(taken) <= set(range(count))
    spread = Choice(k, sampling="spread").sample(range(count), row)
    gaps = np.diff([*spread, count])
    assert spread[:1] == [0][:count] and set(gaps) <= {count // k, count // k + 1, 1}, "from the best on, evenly"


def test_top_looks_at_no_further_candidate():
    candidates = iter(range(9))
    assert Choice(3).sample(candidates, "r") == [0, 1, 2] and next(candidates) == 3


def test_a_draw_is_by_the_row_and_every_candidate_as_likely():
    choice = Choice(2, sampling="random")
    draws = [choice.sample(range(8), f"row {i}") for i in range(4000)]
    assert draws == [choice.sample(range(8), f"row {i}") for i in range(4000)]
    hits = np.bincount(np.array(draws).ravel(), minlength=8)
    assert ((hits - 1000) ** 2 / 1000).sum() < 35, "chi squared of seven degrees: above 35 once in 90,000"
    assert len({tuple(draw) for draw in draws}) == 28, "every pair of eight"


def mined_with(capsys, folder: Path, rows: list[Record], *flags: str) -> dict[str, list[str]]:
    folder.mkdir()
    write_records(folder / "rows.jsonl", rows)
    code, _, said = run(capsys, "mine", folder / "rows.jsonl", "--output", folder / "out.jsonl", *flags)
    assert code == 0, said
    return {row["query"]: row["negatives"] for row in read_jsonl(folder / "out.jsonl")}


def test_the_window_and_the_sampling_of_the_command_whatever_the_order_of_rows(tmp_path, capsys):
    """All texts share one word with every query; equal scores rank by the text's number, which the order changes, so
    the corpus is a file of its own."""
    rows = [Record(f"oak q{i}", [f"oak p{i} {'x ' * i}"], id=f"r{i}") for i in range(12)]
    corpus = [{"id": f"c{i}", "text": f"oak {' '.join(f'w{i}n{k}' for k in range(1 + i))}"} for i in range(30)]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    texts = [row["text"] for row in corpus]  # shorter texts rank higher
    base = ("--corpus", tmp_path / "corpus.jsonl", "--range", "10:22", "--k", "3")
    top = mined_with(capsys, tmp_path / "top", rows, *base)
    assert set(map(tuple, top.values())) == {tuple(texts[10:13])}
    spread = mined_with(capsys, tmp_path / "spread", rows, *base, "--sampling", "spread")
    assert set(map(tuple, spread.values())) == {(texts[10], texts[14], texts[18])}
    drawn = mined_with(capsys, tmp_path / "random", rows, *base, "--sampling", "random")
    assert all(len(set(few)) == 3 and set(few) <= set(texts[10:22]) for few in drawn.values())
    assert len(set(map(tuple, drawn.values()))) > 6, "rows draw apart"
    assert drawn == mined_with(capsys, tmp_path / "turned", rows[::-1], *base, "--sampling", "random")
    fewer = mined_with(capsys, tmp_path / "fewer", rows[3:7], *base, "--sampling", "random")
    assert fewer == {query: drawn[query] for query in fewer}
