"""compose: everything that is accepted, mixed in one call, becomes one stream; and equally many rows of each value."""

import csv
import json
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.composing.balance import Balance
from data_prep.composing.compose import compose
from data_prep.reading.row_problems import Problems
from data_prep.records import Record
from data_prep.sharding.build import shard
from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl, write_records
from tests.unit.data_prep.reading.test_formats import records, texts

EACH = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = [
    {"chunk_id": "c1", "question": "q chunk", "answer": "a", "context": "long", "metadata": {"module": "m"}},
    {"anchor": "q anchor", "positive": "p", "hard_negatives": ["n"]},
    {"anchor": "q bare anchor", "positive": "p"},
    {"query": "q lists", "pos": ["p1", "p2"], "neg": ["n"]},
    ["q array", "item", 0.25],
    {"query": "q scored", "item": "i", "score": 1},
    {"query": "q record", "positives": ["p"], "id": "mine", "source": "other"},
]


def table(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([header, *rows])
    return path


def one_of_each(folder):
    """A file of each format, with the shapes that it can hold."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "array.json").write_text(json.dumps(SHAPES, indent=1))
    pq.write_table(pa.Table.from_pylist([{"query": "q parquet", "pos": ["p"], "neg": []}]), folder / "table.parquet")
    datasets.Dataset.from_list([{"query": "q dataset", "positive": "p"}]).save_to_disk(folder / "dataset")
    stored = write_records(folder / "stored.in.jsonl", [Record("q shard", ["p"], source="stored", id="s1")])
    shard([stored], folder / "shards", eval_fraction=0)
    return [
        write_jsonl(folder / "lines.jsonl", SHAPES),
        folder / "array.json",
        table(folder / "glossary.csv", ["term", "definition"], [["q term", "p"]]),
        table(folder / "pairs.csv", ["anchor", "positive"], [["q csv pair", "p"]]),
        table(folder / "pairs.tsv", ["anchor", "positive"], [["q tsv pair", "p"]]),
        table(folder / "scored.tsv", ["query", "item", "score"], [["q tsv scored", "i", "0.5"]]),
        folder / "table.parquet",
        folder / "dataset",
        folder / "shards",
    ]


def test_one_file_of_each_format_gives_one_stream_of_records(tmp_path, capsys):
    inputs = one_of_each(tmp_path)
    code, out, _ = run(capsys, "compose", *inputs, "--output", tmp_path / "o.jsonl", "--positive", "context")
    assert code == 0
    rows = [Record(**row) for row in read_jsonl(tmp_path / "o.jsonl")]
    shapes = ["q chunk", "q anchor", "q bare anchor", "q lists", "q array", "q scored", "q record"]
    singles = ["q term", "q csv pair", "q tsv pair", "q tsv scored", "q parquet", "q dataset", "q shard"]
    assert [row.query for row in rows] == [*shapes, *shapes, *singles]
    assert not [problem for row in rows for problem in row.problems()]
    assert "21 records (lines 7, array 7, glossary 1, pairs.csv" in out.replace(f"{tmp_path.name}/", "")
    by_query = {row.query: row for row in rows[:7]}
    assert (by_query["q chunk"].positives, by_query["q chunk"].doc_ids) == (["long"], ["c1"])
    assert by_query["q chunk"].metadata == {"module": "m", "answer": "a"}
    assert by_query["q lists"] == Record("q lists", ["p1", "p2"], ["n"], source="lines", id="lines:4")
    assert [row.score for row in rows[-4:]] == [0.5, None, None, None]
    assert rows[-1] == Record("q shard", ["p"], source="stored", id="s1")


def as_jsonl(path, record):
    return write_records(path.with_suffix(".jsonl"), [record])


def as_json(path, record):
    path = path.with_suffix(".json")
    path.write_text(f"[\n{record.to_json()}\n]")
    return path


def as_parquet(path, record):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = json.loads(record.to_json()) | {"metadata": json.dumps(record.metadata)}
    pq.write_table(pa.Table.from_pylist([row]), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_shards(path, record):
    shard([as_jsonl(path.with_name(f"{path.name}.in"), record)], path, eval_fraction=0, overwrite=True)
    return path


def as_chunk(path, record):
    row = {"chunk_id": record.doc_ids[0], "question": record.query, "answer": record.positives[0]}
    return write_jsonl(path.with_suffix(".jsonl"), [row | {"id": record.id, "metadata": record.metadata}])


def as_lists(path, record):
    row = {"query": record.query, "pos": record.positives, "neg": record.negatives, "id": record.id}
    return write_jsonl(path.with_suffix(".jsonl"), [row | {"metadata": record.metadata}])


def as_scored_csv(path, record):
    header = ["query", "item", "score", "id"]
    return table(path.with_suffix(".csv"), header, [[record.query, record.positives[0], record.score, record.id]])


def as_glossary_tsv(path, record):
    return table(
        path.with_suffix(".tsv"), ["term", "definition", "id"], [[record.query, record.positives[0], record.id]]
    )


# writer -> what the format holds of a record beside the query and the first positive
WHOLE = ("positives", "negatives", "score", "teacher_scores", "source", "doc_ids", "metadata")
FORMATS = {
    as_jsonl: WHOLE,
    as_json: WHOLE,
    as_parquet: WHOLE,
    as_shards: WHOLE,
    as_chunk: ("doc_ids", "metadata"),
    as_lists: ("positives", "negatives", "metadata"),
    as_scored_csv: ("score",),
    as_glossary_tsv: (),
}


@EACH
@given(st.lists(st.tuples(records(), texts, st.floats(0, 1), st.sampled_from(list(FORMATS))), min_size=1, max_size=8))
def test_records_written_in_any_mix_of_formats_come_back_through_compose(tmp_path, drawn):
    inputs, expected = [], []
    for number, (record, document, score, write) in enumerate(drawn):
        record.id = f"r{number}"
        if write is as_chunk:
            record.doc_ids = [document, *record.doc_ids[1:]][:1]
        if write is as_scored_csv:
            record.score = score
        inputs.append(write(tmp_path / f"f{number}", record))
        held = FORMATS[write]
        poor = Record(record.query, record.positives[:1], source=f"f{number}", id=record.id)
        for name in held:
            setattr(poor, name, getattr(record, name))
        if write is as_chunk:
            poor.positives = record.positives[:1]
        expected.append(poor)
    compose(inputs, tmp_path / "o.jsonl")
    assert [Record(**row) for row in read_jsonl(tmp_path / "o.jsonl")] == expected


def categories(tmp_path, name="in.jsonl", order=1):
    sizes = {"flue": 30, "tap": 12, "stove": 5}
    rows = [
        {"query": f"{kind} {n}", "item": f"item {n}", "score": 1, "category": kind, "id": f"{kind}{n}"}
        for kind, size in sizes.items()
        for n in range(size)
    ]
    return write_jsonl(tmp_path / name, rows[::order])


def balanced(tmp_path, capsys, path, *flags):
    code, out, err = run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--balance", "category", *flags)
    assert code == 0, err
    rows = read_jsonl(tmp_path / "o.jsonl")
    return [row["id"] for row in rows], Counter(row["metadata"]["category"] for row in rows), out, err


def test_as_many_rows_of_each_value_as_the_rarest_has(tmp_path, capsys):
    kept, counts, out, err = balanced(tmp_path, capsys, categories(tmp_path))
    assert counts == {"flue": 5, "tap": 5, "stove": 5}
    assert "--balance category: at most 5 rows of each of 3 values" in err
    assert "left out: 32 rows (flue 25, tap 7)" in err
    assert "15 records (in 15)" in out
    everything = [row["id"] for row in read_jsonl(categories(tmp_path))]
    assert kept == [name for name in everything if name in kept]  # in the order of the input


def test_a_number_of_rows_of_each_value_and_those_with_fewer(tmp_path, capsys):
    _, counts, _, err = balanced(tmp_path, capsys, categories(tmp_path), "--per-value", "10")
    assert counts == {"flue": 10, "tap": 10, "stove": 5}
    assert "left out: 22 rows (flue 20, tap 2)" in err
    assert "fewer rows than that: stove 5" in err


def test_the_draw_is_by_seed_and_not_by_order(tmp_path, capsys):
    kept = balanced(tmp_path, capsys, categories(tmp_path))[0]
    assert balanced(tmp_path, capsys, categories(tmp_path))[0] == kept
    assert set(balanced(tmp_path, capsys, categories(tmp_path, order=-1))[0]) == set(kept)
    assert set(balanced(tmp_path, capsys, categories(tmp_path), "--seed", "1")[0]) != set(kept)


def test_every_row_is_as_likely_to_be_drawn():
    """Chi-square of how often each of 30 rows is among the 5 drawn, over 300 seeds."""
    rows = [Record(f"q {n}", ["p"], id=f"a:{n}", metadata={"kind": "a"}) for n in range(30)]
    drawn = Counter()
    for seed in range(300):
        balance = Balance("kind", 5, seed)
        for row in rows:
            balance.add(row, Problems())
        drawn.update(n for n, kept in enumerate(balance.kept()) if kept)
    expected = 300 * 5 / 30
    assert drawn.total() == 300 * 5
    assert sum((drawn[n] - expected) ** 2 / expected for n in range(30)) < 29 + 5 * 58**0.5


def test_hard_negatives_are_drawn_before_rows_are_left_out(tmp_path, capsys):
    path = write_records(
        tmp_path / "in.jsonl",
        [Record(f"oak {n}", [f"an oak tree {n}"], metadata={"category": "a" if n else "b"}) for n in range(6)],
    )
    code, _, _ = run(
        capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--balance", "category", "--hard-k", "4"
    )
    assert code == 0
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [len(row["negatives"]) for row in rows] == [4, 4]
