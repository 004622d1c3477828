"""Decontamination: what stands in an evaluation set is found, equal or nearly so, and nothing else."""

import json
import random
from collections import Counter

import pytest

from data_prep.common.errors import BadInput
from data_prep.quality import gate
from data_prep.quality.decontaminate import HeldOut, held_out
from data_prep.records import Record
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from tests import planted
from tests.unit.data_prep.helpers import documents, write_jsonl, write_records


def write_set(folder, records: list[Record], beir: bool = False):
    """Query i is answered by document i; document "other" by none, "weak" with grade 0."""
    folder.mkdir()
    key = "_id" if beir else "id"
    docs = [{key: f"d{i}", "title": f"Title {i}", "text": record.positives[0]} for i, record in enumerate(records)]
    docs += [{key: name, "title": "", "text": f"a document that is {name}"} for name in ("other", "weak")]
    write_jsonl(folder / "corpus.jsonl", docs)
    write_jsonl(folder / "queries.jsonl", [{key: f"q{i}", "text": r.query} for i, r in enumerate(records)])
    lines = [f"q{i}\td{i}\t1" for i in range(len(records))] + ["q0\tweak\t0"]
    if beir:
        (folder / "qrels").mkdir()
        lines = ["query-id\tcorpus-id\tscore", *lines]
    (folder / ("qrels/test.tsv" if beir else "qrels.tsv")).write_text("\n".join(lines) + "\n")
    return folder


def uncontaminated(texts: HeldOut, records: list[Record]) -> list[Record]:
    return [record for record, match in zip(records, texts.matches(records)) if match is None]


@pytest.fixture
def held():
    return planted.rows(60, seed=7)


@pytest.mark.parametrize("beir", [False, True])
def test_rows_that_hold_a_query_or_a_relevant_document_are_left_out_and_counted(tmp_path, held, beir):
    found = held_out([write_set(tmp_path / "set", held, beir)])
    clean = planted.rows(200)
    leaks = [
        Record(f"  {held[0].query.upper()}", ["new answer"]),
        Record("new question", ["first answer", held[1].positives[0]]),  # without its title
        Record("new question 2", [f"Title 2 {held[2].positives[0]}"]),
        Record(held[3].positives[0], ["new answer 2"]),
        Record("qeustion", ["new answer 4"], metadata={"parent_query": held[4].query}),
    ]
    harmless = [
        Record("new question 3", ["a document that is other"]),
        Record("new question 4", ["a document that is weak"]),
        Record("new question 5", ["new answer 3"], [held[4].positives[0]]),  # a hard negative
        Record("new question 6", ["Title 5"]),
    ]
    assert uncontaminated(found, [*leaks[:2], *clean, *leaks[2:], *harmless]) == [*clean, *harmless]
    name = str(tmp_path / "set")
    counts = Counter((match.held.name, match.held.kind) for match in found.matches(leaks))
    assert counts == {(name, "query"): 2, (name, "document"): 3}
    sides = [(match.side, match.held.kind, match.similarity) for match in found.matches(leaks)]
    assert sides == [("query", "query", 1.0), ("positive", "document", 1.0)] + [
        ("positive", "document", 1.0),
        ("query", "document", 1.0),
        ("query", "query", 1.0),
    ]


def test_near_duplicates_by_option_only(held):
    rng = random.Random(0)
    leaks = [planted.near(record, 0.85, rng) for record in held]
    by_query = [Record(leak.query, ["new"]) for leak in leaks[:30]]
    by_positive = [Record("new", leak.positives) for leak in leaks[30:]]
    clean = planted.rows(300)
    unchanged = sum(r.query == leak.query for r, leak in zip(held[:30], leaks))  # too short for a change at 0.85
    assert unchanged < 15
    for near, fewest, most in ((None, unchanged, unchanged), (0.85, 57, 60)):
        index = HeldOut(near)
        index.add("set", [r.query for r in held], [r.positives[0] for r in held])
        assert index.matches(clean) == [None] * 300
        found = [match for match in index.matches(by_query + by_positive) if match]
        assert fewest <= len(found) <= most
        assert all(match.similarity >= (near or 1) for match in found)
        assert [match.side for match in found] == sorted((match.side for match in found), reverse=True)
        assert not index.unsure


def test_a_shard_folder_holds_out_its_eval_split(tmp_path, capsys):
    path = write_records(tmp_path / "in.jsonl", documents(100))
    shard([path], tmp_path / "split", eval_fraction=0.2)
    shard([path], tmp_path / "whole", eval_fraction=0)
    rows = documents(100)
    found = held_out([tmp_path / "split"])
    kept = uncontaminated(found, rows)
    manifest = json.loads((tmp_path / "split/manifest.json").read_text())
    assert len(kept) == manifest["rows"]["train"] < 300
    capsys.readouterr()
    assert uncontaminated(held_out([tmp_path / "whole"]), rows) == []
    assert "has no eval split, so every row of it counts as held out" in capsys.readouterr().err


def test_all_problems_of_all_sets(tmp_path, held):
    broken = write_set(tmp_path / "set", held)
    (broken / "qrels.tsv").write_text("q0 d0 1\n")
    with pytest.raises(BadInput) as error:
        held_out([tmp_path / "nowhere", broken])
    assert "--exclude" in error.value.problems[0]
    assert "no such folder" in error.value.problems[0]
    assert any("qrels.tsv:1" in problem for problem in error.value.problems)


def test_a_real_set_split_by_page_holds_none_of_its_train_rows(real_data):
    folder = real_data / "retrieval" / "k8s_docs"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [Record(row["query"], row["pos"]) for row in rows]
    assert uncontaminated(held_out([folder]), records) == records
    queries = [json.loads(line)["text"] for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    assert uncontaminated(held_out([folder]), [Record(query, ["an answer"]) for query in queries]) == []


def test_of_a_large_eval_split_evenly_spaced_rows_are_compared(tmp_path, monkeypatch):
    """Rows of one template, so that train rows are near those of eval: no more texts than asked for are in memory."""
    rows = [{"anchor": f"what does number {i} stand for here?", "positive": f"it stands for {i}"} for i in range(400)]
    shard([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "s", eval_fraction=0.5)
    shards, sizes = open_shards(tmp_path / "s"), []
    whole, add = gate.of_rows(shards), gate.HeldOut.add

    def counted(texts, name, queries, documents):
        sizes.append(len(queries))
        add(texts, name, queries, documents)

    monkeypatch.setattr(gate.HeldOut, "add", counted)
    monkeypatch.setattr(gate, "HELD_TEXTS", shards.rows("eval"))
    assert [one.name for one in gate.of_rows(shards)] == [one.name for one in whole]
    assert "near_leakage" in {one.name for one in whole}
    assert sizes[0] == shards.rows("eval")
    sizes.clear()
    monkeypatch.setattr(gate, "HELD_TEXTS", 50)
    assert "near_leakage" in {one.name for one in gate.of_rows(shards)}
    assert sizes[0] == 50 and len(sizes) <= 51
