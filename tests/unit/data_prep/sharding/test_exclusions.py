"""`shard --near-duplicates` and `--exclude`: what is left out is what the gate's own parts name, counted, however the
input is cut."""

import random

import pytest

from data_prep.quality.decontaminate import HeldOut, held_out
from data_prep.records import Record
from data_prep.shards.folder import open_shards
from data_prep.texts.near_duplicates import NearDuplicates
from tests import planted
from tests.unit.data_prep.helpers import run, write_records
from tests.unit.data_prep.quality.test_decontaminate import uncontaminated, write_set
from tests.unit.data_prep.sharding.test_build import contents


@pytest.fixture(scope="module")
def rows():
    """120 distinct rows, 20 near duplicates of them (and one of a near duplicate), exact ones between, shuffled."""
    rng = random.Random(3)
    made = planted.rows(120)
    twins = [planted.near(record, 0.9, rng) for record in made[:20]]
    some = [*made, *twins, planted.near(twins[0], 0.95, rng), *made[5:12], *twins[2:4]]
    rng.shuffle(some)
    return some


def queries(folder, split="train") -> list[str]:
    return [record.query for record in open_shards(folder).split(split)]


def without_near(rows, similarity):
    index, first = NearDuplicates(similarity), list({record.query: record for record in rows}.values())
    for record in first:
        index.add(record)
    removed = index.find(lambda numbers: [first[number] for number in numbers])
    return [record.query for record, out in zip(first, removed) if not out]


def test_near_duplicates_are_left_out_and_counted(rows, tmp_path, monkeypatch, capsys):
    path = write_records(tmp_path / "a.jsonl", rows)
    command = ["shard", path, "--eval-fraction", "0", "--near-duplicates", "0.85", "--output"]
    code, out, _ = run(capsys, *command, tmp_path / "s")
    assert code == 0
    expected = without_near(rows, 0.85)
    assert queries(tmp_path / "s") == expected
    manifest = open_shards(tmp_path / "s").manifest
    assert manifest["duplicates_removed"] == 9
    assert manifest["near_duplicates"] == {"similarity": 0.85, "removed": 141 - len(expected), "unsure": 0}
    assert f"near duplicates removed (similarity 0.85): {141 - len(expected)}" in out
    assert 141 - len(expected) >= 20
    monkeypatch.setattr("data_prep.sharding.spool.SPAN_BYTES", 2000)
    monkeypatch.setattr("data_prep.sharding.build.SPAN_BYTES", 2000)
    assert run(capsys, *command, tmp_path / "cut", "--workers", "2")[0] == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "s")


@pytest.mark.parametrize("similarity", [None, 0.85])
def test_train_rows_that_hold_a_text_of_an_evaluation_set_are_left_out(tmp_path, capsys, similarity):
    held, rng = planted.rows(30, seed=7), random.Random(1)
    sets = [write_set(tmp_path / "one", held[:20]), write_set(tmp_path / "two", held[20:])]
    some = [
        *planted.rows(60),
        *(Record(record.query.upper(), [f"an answer {i}"]) for i, record in enumerate(held[:4])),
        *(Record(f"a question {i}", record.positives) for i, record in enumerate(held[22:28])),
        *(Record(f"another {i}", [planted.altered(held[i].positives[0], 0.9, rng)]) for i in range(10, 15)),
    ]
    rng.shuffle(some)
    path = write_records(tmp_path / "a.jsonl", some)
    flags = [flag for folder in sets for flag in ("--exclude", folder)]
    flags += ["--near-duplicates", similarity] if similarity else []
    code, out, _ = run(capsys, "shard", path, "--output", tmp_path / "s", "--eval-fraction", "0", *flags)
    assert code == 0
    texts = HeldOut(similarity)
    texts.keys = held_out(sets).keys
    assert queries(tmp_path / "s") == [record.query for record in uncontaminated(texts, some)]
    one, two = map(str, sets)
    documents = {"document": 5} if similarity else {}
    excluded = open_shards(tmp_path / "s").manifest["excluded"]
    assert excluded == {"rows": {one: documents | {"query": 4}, two: {"document": 6}}, "unsure": 0}
    assert f"train rows left out by --exclude: {15 if similarity else 10}" in out


def test_eval_rows_may_hold_texts_of_an_evaluation_set(tmp_path, capsys):
    """Only what is trained on is decontaminated; and rows left out share nothing with the plan."""
    held = planted.rows(200, seed=7)
    folder = write_set(tmp_path / "set", held)
    path = write_records(tmp_path / "a.jsonl", held + planted.rows(200))
    command = ["shard", path, "--eval-fraction", "0.5", "--output"]
    assert run(capsys, *command, tmp_path / "all")[0] == 0
    assert run(capsys, *command, tmp_path / "s", "--exclude", folder)[0] == 0
    assert queries(tmp_path / "s", "eval") == queries(tmp_path / "all", "eval")
    known = {record.query for record in held}
    assert queries(tmp_path / "s") == [query for query in queries(tmp_path / "all") if query not in known]
    (source,) = open_shards(tmp_path / "s").train_sources()
    assert len(source.rows) == open_shards(tmp_path / "s").rows("train")


def test_a_published_set_with_flaws_is_excluded_and_they_are_said(tmp_path, capsys):
    held = planted.rows(5, seed=7)
    folder = write_set(tmp_path / "set", held)
    for name, line in (("corpus.jsonl", '{"id": "none", "text": ""}\n'), ("qrels.tsv", "lost\td0\t1\n")):
        (folder / name).write_text((folder / name).read_text(encoding="utf-8") + line, encoding="utf-8")
    path = write_records(tmp_path / "a.jsonl", [*planted.rows(5), *held])
    code, out, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--eval-fraction", "0", "--exclude", folder)
    assert code == 0 and "train rows left out by --exclude: 5" in out
    assert "corpus.jsonl:8: text of 'none' is empty; 1 documents without text are left out" in err
    assert "qrels.tsv:7: query 'lost' is not in queries.jsonl; 1 judgements of such queries are left out" in err


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--near-duplicates", "0.5"], "--near-duplicates 0.5: a Jaccard similarity of 0.7 to 1"),
        (["--exclude", "nowhere"], "--exclude nowhere"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, monkeypatch, flags, part):
    monkeypatch.chdir(tmp_path)
    path = write_records(tmp_path / "a.jsonl", planted.rows(3))
    code, _, err = run(capsys, "shard", path, "--output", "s", *flags)
    assert code == 2
    assert part in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
