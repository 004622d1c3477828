"""Mining: what may never be chosen, what is kept on disk, and the same negatives by each way to mine."""

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
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import Failed
from data_prep.mining.bm25 import Bm25
from data_prep.mining.choice import Choice
from data_prep.mining.mine import Mining, mine
from data_prep.mining.miner import Miner, add_hard_negatives
from data_prep.mining.vector_cache import VectorCache
from data_prep.records import PARENT, PARENT_QUERY, Record, text_key
from tests.launching import ROOT, environment
from tests.unit.data_prep.helpers import documents, read_jsonl, run, write_jsonl, write_records
from tests.unit.data_prep.mining.helpers import QUICK, Planted, corpus_of, dense_of

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


def test_a_run_leaves_what_a_killed_run_of_another_model_resumes_from(tmp_path):
    path, out = write_records(tmp_path / "rows.jsonl", documents(4)), tmp_path / "o.jsonl"
    kept = tmp_path / ".o.jsonl.mining" / "another" / "passages.f32"
    kept.parent.mkdir(parents=True)
    kept.write_text("hours of work")
    for mining, encoder in ((Mining(), None), (Mining("dense"), Planted())):
        mine([path], out, mining, encoder=encoder)
        assert out.exists() and [file for file in kept.parents[1].rglob("*") if file.is_file()] == [kept]


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
