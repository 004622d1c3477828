"""Shard folders: the same bytes for the same input, split by document, refused when unfinished or damaged."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.records import Record, normalise
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from data_prep.shards.shared_keys import FILES as SHARING_FILES
from data_prep.shards.shared_keys import by_source, shared_keys
from tests.unit.data_prep.helpers import changed_files, documents, run, write_jsonl, write_records


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def made(tmp_path):
    path = write_records(tmp_path / "in.jsonl", documents(100))
    shard([path], tmp_path / "s", num_shards=4, eval_fraction=0.2)
    return tmp_path / "s"


def test_the_same_input_and_seed_give_the_same_bytes_and_another_seed_another_split(made, tmp_path):
    path = tmp_path / "in.jsonl"
    shard([path], tmp_path / "again", num_shards=4, eval_fraction=0.2)
    assert contents(tmp_path / "again") == contents(made)
    other = shard([path], tmp_path / "other", num_shards=4, eval_fraction=0.2, seed=1)
    assert other["fingerprint"] != open_shards(made).fingerprint


def test_datasets_opens_the_folder_and_writes_the_same_arrow_bytes(made, tmp_path):
    import datasets

    data = datasets.load_from_disk(str(made))
    assert {name: len(split) for name, split in data.items()} == open_shards(made).manifest["rows"]
    data.save_to_disk(tmp_path / "theirs", num_shards={"train": 4, "eval": 1})
    ours, theirs = contents(made), contents(tmp_path / "theirs")
    assert {str(path) for path in set(ours) - set(theirs)} == {"manifest.json", *SHARING_FILES}
    arrow = [path for path in theirs if path.suffix == ".arrow"]
    assert len(arrow) == 5
    assert all(ours[path] == theirs[path] for path in arrow)


def test_rows_equal_those_of_datasets_in_any_order(made):
    import datasets

    expected = [
        Record(**{**row, "metadata": json.loads(row["metadata"])})
        for row in datasets.load_from_disk(str(made))["train"]
    ]
    rows = open_shards(made).split("train")
    assert list(rows) == expected
    ids = [len(rows) - 1, 0, 5, 5, len(rows) // 2, 1]
    assert rows.take(ids) == [expected[i] for i in ids]
    assert rows[7] == expected[7]
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows[outside]


def test_every_field_survives(tmp_path):
    full = Record(
        "q", ["p", "ü"], ["n"], 0.5, [0.1, 0.2, 0.3], "src", "id", ["d", "e"], {"a": [1, None], "z": {"b": "c"}}
    )
    bare = Record("r", ["s"], source="src", id="j")
    shard([write_records(tmp_path / "a.jsonl", [full, bare])], tmp_path / "s", eval_fraction=0)
    folder = open_shards(tmp_path / "s")
    assert folder.splits == ["train"]
    assert list(folder.split("train")) == [full, bare]
    assert changed_files(folder) == []


def test_rows_are_found_across_record_batches(tmp_path):
    shard([write_records(tmp_path / "a.jsonl", documents(2100, per=1))], tmp_path / "s", num_shards=2, eval_fraction=0)
    rows = open_shards(tmp_path / "s").split("train")
    assert len(rows) == 2100
    for row in (0, 999, 1000, 1049, 1050, 2049, 2050, 2099):
        assert rows[row].id == f"a:{row + 1}"


def test_the_manifest_says_what_was_done(tmp_path):
    first = write_records(
        tmp_path / "a.jsonl", [*documents(40), Record("QUESTION 0 about topic0", ["answer 0 on topic0, distinct"])]
    )
    second = write_jsonl(tmp_path / "b.jsonl", [{"term": f"term {i}", "definition": f"meaning {i}"} for i in range(20)])
    manifest = shard([first, second], tmp_path / "s", num_shards=3, eval_fraction=0.25)
    assert manifest["schema_version"] == 2
    assert manifest["shared_keys"].keys() == {"a", "b"}
    assert manifest["duplicates_removed"] == 1
    assert sum(manifest["rows"].values()) == 140
    assert {name: sum(parts.values()) for name, parts in manifest["sources"].items()} == {"a": 120, "b": 20}
    assert manifest["tokenizer"] is None
    assert manifest["split"]["by"] == "documents"
    assert 0.1 < manifest["rows"]["eval"] / 140 < 0.4
    assert sum(manifest["lengths"]["query"]["words"]["histogram"].values()) == 140
    arrow = [entry for entry in manifest["files"] if entry["path"].startswith("train/data-")]
    assert len(arrow) == 3
    assert sum(entry["rows"] for entry in arrow) == manifest["rows"]["train"]
    assert json.loads((tmp_path / "s" / "manifest.json").read_text()) == manifest


names = st.sampled_from("abcdefghij")
rows = st.lists(
    st.builds(
        lambda q, p, docs: Record(f"query {q}", [f"text {x}" for x in p], doc_ids=docs[: len(p)] if docs else []),
        st.integers(0, 30),
        st.lists(st.integers(0, 30), min_size=1, max_size=2),
        st.none() | st.lists(st.integers(0, 30).map(str), min_size=2, max_size=2),
    ),
    min_size=2,
    max_size=25,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.integers(0, 3))
def test_no_document_or_text_is_in_both_splits(tmp_path, some, seed):
    target = tmp_path / "s"
    shutil.rmtree(target, ignore_errors=True)
    path = write_records(tmp_path / "a.jsonl", some)
    try:
        shard([path], target, eval_fraction=0.5, seed=seed)
    except BadInput as error:
        assert "no row is left" in str(error)
        assert not target.exists()
        return
    folder = open_shards(target)
    held = {}
    for split in folder.splits:
        texts, docs = set(), set()
        for record in folder.split(split):
            texts |= {normalise(text) for text in (record.query, *record.positives)}
            docs |= set(record.doc_ids)
        held[split] = texts, docs
    assert not held["train"][0] & held["eval"][0]
    assert not held["train"][1] & held["eval"][1]
    distinct = {(record.query, tuple(sorted(record.positives))) for record in some}
    assert sum(folder.manifest["rows"].values()) == len(distinct)
    assert folder.manifest["duplicates_removed"] == len(some) - len(distinct)


def test_a_document_of_a_removed_duplicate_stays_with_its_twin(tmp_path):
    some = [
        Record("q", ["p"], doc_ids=["one"]),
        Record("q", ["p"], doc_ids=["two"]),
        Record("r", ["s"], doc_ids=["two"]),
    ]
    path = write_records(tmp_path / "a.jsonl", [*some, *documents(40)])
    for seed in range(6):
        shard([path], tmp_path / "s", eval_fraction=0.5, seed=seed, overwrite=True)
        folder = open_shards(tmp_path / "s")
        where = {record.query: split for split in folder.splits for record in folder.split(split)}
        assert where["q"] == where["r"]


def test_the_split_does_not_depend_on_which_of_two_duplicates_comes_first(tmp_path):
    """They name different documents, and a group is drawn by the smallest key of all that its rows hold."""
    one = [Record(f"q{i}", [f"p{i}"], doc_ids=[f"one {i}"]) for i in range(60)]
    two = [Record(f"q{i}", [f"p{i}"], doc_ids=[f"two {i}"]) for i in range(60)]
    held = []
    for name, records in (("a", one + two), ("b", two + one)):
        shard([write_records(tmp_path / f"{name}.jsonl", records)], tmp_path / name, eval_fraction=0.5)
        held.append({record.query for record in open_shards(tmp_path / name).split("eval")})
    assert held[0] == held[1] and 10 < len(held[0]) < 50


def test_split_by_a_field_and_leakage(tmp_path, capsys):
    shared = [Record(f"Same docstring {i}", [f"said twice {i}"], metadata={"module": f"m{i % 7}"}) for i in range(7)]
    twin = [
        Record(r.query, [r.positives[0], "more"], metadata={"module": f"m{i + 1}"}) for i, r in enumerate(shared[:6])
    ]
    path = write_records(tmp_path / "a.jsonl", [*documents(70, module=True), *shared, *twin])
    command = [
        "shard",
        path,
        "--output",
        tmp_path / "s",
        "--split-by",
        "module",
        "--eval-fraction",
        "0.4",
        "--seed",
        "3",
    ]
    code, _, err = run(capsys, *command)
    assert code == 2
    assert "leakage:" in err
    assert "Same docstring" in err
    assert "--on-leakage drop-train" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
    rows = {}
    for side in ("drop-train", "drop-eval"):
        code, out, _ = run(capsys, *command, "--on-leakage", side, "--overwrite")
        assert code == 0
        assert f"rows dropped by --on-leakage {side}" in out
        folder = open_shards(tmp_path / "s")
        rows[side] = folder.manifest["rows"]
        modules = {split: {row.metadata["module"] for row in folder.split(split)} for split in folder.splits}
        texts = {
            split: {text for row in folder.split(split) for text in (row.query, *row.positives)}
            for split in folder.splits
        }
        assert not modules["train"] & modules["eval"]
        assert not texts["train"] & texts["eval"]
        assert folder.manifest["split"]["by"] == "metadata.module"
        assert folder.manifest["split"]["dropped"] == 223 - sum(rows[side].values())
    assert rows["drop-train"]["eval"] > rows["drop-eval"]["eval"]
    assert rows["drop-train"]["train"] < rows["drop-eval"]["train"]


def test_rows_that_all_hang_together_stay_in_train_and_it_is_said(tmp_path, capsys):
    some = [Record(f"query {i}", ["the one answer", f"answer {i}"]) for i in range(50)]
    path = write_records(tmp_path / "a.jsonl", some)
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--eval-fraction", "0.999")
    assert code == 2
    assert "50 of 50 rows share texts or documents" in err


def test_a_finished_folder_is_kept_an_unfinished_one_replaced(made, tmp_path, capsys):
    before = contents(made)
    path = tmp_path / "in.jsonl"
    code, _, err = run(capsys, "shard", path, "--output", made)
    assert code == 2
    assert "is a finished shard folder; choose another folder or add --overwrite" in err
    assert contents(made) == before
    (made / "manifest.json").unlink()
    for command in (["inspect", made], ["compose", made, "--output", tmp_path / "o.jsonl"]):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert "unfinished" in err
    code, _, err = run(capsys, "shard", path, "--output", made, "--num-shards", 4, "--eval-fraction", "0.2")
    assert code == 0
    assert "is unfinished (no manifest.json) and will be replaced" in err
    assert contents(made) == before


def test_what_a_killed_run_left_is_removed(made, tmp_path, capsys):
    left = tmp_path / ".new.unfinished"
    left.mkdir()
    (left / "spool.jsonl").write_text("{")
    code, _, err = run(capsys, "shard", tmp_path / "in.jsonl", "--output", tmp_path / "new")
    assert code == 0
    assert "removing what an interrupted run left" in err
    assert not left.exists()


def test_a_failure_while_writing_leaves_the_old_folder(made, tmp_path, monkeypatch):
    before = contents(made)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.sharding.write.SplitWriter._flush", full)
    with pytest.raises(OSError, match="No space"):
        shard([tmp_path / "in.jsonl"], made, overwrite=True)
    assert contents(made) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "s"]


def test_shards_are_an_input_too(made, tmp_path, capsys):
    code, _, err = run(capsys, "compose", made, "--output", tmp_path / "o.jsonl")
    assert code == 0
    assert "all splits are read: train" in err
    folder = open_shards(made)
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == folder.rows("train") + folder.rows("eval")


def damage(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda s: shutil.rmtree(s), "no such folder"),
        (lambda s: (s / "manifest.json").unlink(), "has no manifest.json"),
        (lambda s: (s / "train/state.json").unlink(), "state.json: is missing"),
        (lambda s: damage(s, "train/data-00001-of-00004.arrow", lambda b: b[:-9]), "its manifest says"),
        (lambda s: damage(s, "manifest.json", lambda b: b[:40]), "is no shard manifest"),
        (lambda s: damage(s, "manifest.json", lambda b: b"[]"), "is no shard manifest"),
        (lambda s: damage(s, "manifest.json", lambda b: b'{"schema_version": 3}'), "install a newer embedfleet"),
        (lambda s: damage(s, "manifest.json", lambda b: b'{"schema_version": 1}'), "reads 2; run shard again"),
        (lambda s: damage(s, "manifest.json", lambda b: b'{"schema_version": 2}'), "key 'rows' is missing"),
    ],
)
def test_a_damaged_folder_is_refused(made, break_it, message):
    break_it(made)
    with pytest.raises(BadInput, match=message):
        open_shards(made)


def test_unknown_splits_are_noticed(made):
    folder = open_shards(made)
    with pytest.raises(BadInput, match=r"has no split 'evl'; it has train, eval\. Did you mean 'eval'"):
        folder.split("evl")
    damage(made, "eval/data-00000-of-00001.arrow", lambda b: b[:-20] + b"\1" + b[-19:])
    assert changed_files(open_shards(made)) == ["eval/data-00000-of-00001.arrow"]


def test_a_file_is_no_shard_folder(tmp_path):
    path = write_records(tmp_path / "a.jsonl", documents(1))
    with pytest.raises(BadInput, match="is a file, not a shard folder"):
        open_shards(path)


def pairs_that_share(source):
    """{(row, earlier row)} of one source, by index within it, read by key and, alike, by row."""
    by_key, number = source.shared.members(np.arange(len(source.shared)))
    row_place, key = source.shared.keys_of(np.arange(len(source.rows)))
    assert sorted(zip(by_key.tolist(), number.tolist())) == list(zip(row_place.tolist(), key.tolist()))
    return {(i, j) for i, k in zip(by_key, number) for j, m in zip(by_key, number) if j < i and k == m}


def test_which_train_rows_share_a_text_or_document_stands_beside_them(tmp_path):
    """Rows of one source that share a positive, a query or a document share a key; nothing else is written down."""
    rows = [
        {"query": "a b", "positives": ["one two"], "doc_ids": ["d1"]},
        {"query": "c d", "positives": ["One  TWO"], "doc_ids": ["d2"]},
        {"query": "x", "positives": ["one two"], "doc_ids": ["d9"], "source": "other"},
        {"query": "A  B", "positives": ["three"], "doc_ids": ["d3"]},
        {"query": "e f", "positives": ["four"], "doc_ids": ["d2"]},
        {"query": "y", "positives": ["six"], "doc_ids": ["d9"], "source": "other"},
        {"query": "g h", "positives": ["five"], "doc_ids": ["d4"]},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard([source], tmp_path / "s", eval_fraction=0)
    other, mine = open_shards(tmp_path / "s").train_sources()
    assert (other.name, other.rows.tolist()) == ("other", [2, 5])
    assert (mine.name, mine.rows.tolist()) == ("rows", [0, 1, 3, 4, 6])
    assert pairs_that_share(other) == {(1, 0)}
    assert pairs_that_share(mine) == {(1, 0), (2, 0), (3, 1)}
    assert mine.ids(np.array([4, 2])).tolist() == [6, 3]
    assert len(mine.shared) == 3


def test_rows_of_eval_share_nothing_with_the_plan(made):
    folder = open_shards(made)
    assert folder.rows("eval") > 0
    (source,) = folder.train_sources()
    assert source.rows.tolist() == list(range(folder.rows("train")))
    texts = [{record.query, *record.positives, *record.doc_ids} for record in folder.split("train")]
    assert pairs_that_share(source) == {(i, j) for i in range(len(texts)) for j in range(i) if texts[i] & texts[j]}


def test_a_duplicate_that_was_removed_leaves_its_document(tmp_path):
    """Its document counts as one of the row that stayed; named twice it is no sharing of a row with itself."""
    some = [
        Record("q", ["p"], doc_ids=["one"]),
        Record("q", ["p"], doc_ids=["one"]),
        Record("q", ["p"], doc_ids=["two"]),
        Record("r", ["s"], doc_ids=["two"]),
    ]
    shard([write_records(tmp_path / "a.jsonl", some)], tmp_path / "s", eval_fraction=0)
    (source,) = open_shards(tmp_path / "s").train_sources()
    assert len(source.shared) == 1
    assert pairs_that_share(source) == {(1, 0)}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=60), st.integers(1, 4))
def test_shared_keys_of_any_sources(pairs, sources):
    source_of = np.arange(31) % sources
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    made = by_source([str(i) for i in range(sources)], source_of, pairs[:, 0], pairs[:, 1])
    for number, source in enumerate(made):
        assert source.rows.tolist() == list(range(number, 31, sources))
        held = {}
        for row, key in pairs.tolist():
            if row % sources == number:
                held.setdefault(key, set()).add(row // sources)
        expected = {(i, j) for rows in held.values() for i in rows for j in rows if j < i}
        assert pairs_that_share(source) == expected
        assert len(source.shared) == sum(len(rows) > 1 for rows in held.values())


def test_no_sharing_at_all():
    assert len(shared_keys(np.arange(0), np.arange(0))) == 0
    assert len(shared_keys(np.arange(5), np.arange(5))) == 0


def test_bytes_of_texts_are_known_without_reading_them(tmp_path):
    texts = {
        "query": lambda i: ["é" * (i + 1)],
        "positives": lambda i: ["p" * j for j in range(1, i + 2)],
        "negatives": lambda i: ["n" * i] if i % 2 else [],
    }
    rows = [{"query": texts["query"](i)[0]} | {k: texts[k](i) for k in ("positives", "negatives")} for i in range(7)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard([source], tmp_path / "out", eval_fraction=0, num_shards=3)
    split, ids = open_shards(tmp_path / "out").split("train"), [6, 0, 3, 5]
    for column, made in texts.items():
        found = split.bytes_of(column, ids)
        assert found.count.tolist() == [len(made(i)) for i in ids]
        assert found.total.tolist() == [len("".join(made(i)).encode()) for i in ids]
