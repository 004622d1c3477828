"""Every accepted format becomes the same records, and records survive every format that can hold them."""

import csv
import json
import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.reading.formats import read_records
from data_prep.records import Record
from tests.unit.data_prep.helpers import PAIR, read_jsonl, run, write_jsonl, write_records

ALL_SETTINGS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
# every character that UTF-8 can hold and that is not invisible alone
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).map(lambda text: text + "x")
json_values = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8"))
scores = st.floats(0, 1)


@st.composite
def records(draw):
    positives, negatives = draw(st.lists(texts, min_size=1, max_size=3)), draw(st.lists(texts, max_size=3))
    documents = len(positives) + len(negatives)
    return Record(
        draw(texts),
        positives,
        negatives,
        draw(st.none() | scores),
        draw(st.none() | st.lists(scores, min_size=documents, max_size=documents)),
        draw(texts),
        draw(texts),
        draw(st.just([]) | st.lists(texts, min_size=len(positives), max_size=len(positives))),
        draw(st.dictionaries(texts, json_values, max_size=3)),
    )


some = st.lists(records(), min_size=1, max_size=4)


def read(path, **options):
    return list(read_records(path, **options))


@ALL_SETTINGS
@given(some)
def test_whole_records_survive_json_jsonl_parquet_and_datasets(tmp_path, given_records):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(record.to_json()) for record in given_records]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert read(tmp_path / "a.json") == given_records
    assert read(write_jsonl(tmp_path / "a.jsonl", rows)) == given_records
    table = pa.Table.from_pylist([row | {"metadata": json.dumps(row["metadata"])} for row in rows])
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == given_records
    datasets.Dataset(table).save_to_disk(tmp_path / "folder")
    assert read(tmp_path / "folder") == given_records


def of(record: Record, **change) -> Record:
    """The record as a poorer format holds it."""
    poor = {"negatives": [], "score": None, "teacher_scores": None, "doc_ids": [], "metadata": {}, **change}
    return Record(**{**json.loads(record.to_json()), **poor})


@ALL_SETTINGS
@given(some)
def test_records_survive_the_shapes_of_other_tools(tmp_path, given_records):
    kept = {"id": None, "source": None}
    lists = [{"query": r.query, "pos": r.positives, "neg": r.negatives} for r in given_records]
    pairs = [{"anchor": r.query, "positive": r.positives[0], "hard_negatives": r.negatives} for r in given_records]
    scored = [[r.query, r.positives[0], r.score or 0.5] for r in given_records]
    chunks = [
        {"chunk_id": r.id, "question": r.query, "answer": r.positives[0], "metadata": r.metadata} for r in given_records
    ]
    for rows, change in (
        (lists, lambda r: {"negatives": r.negatives}),
        (pairs, lambda r: {"negatives": r.negatives, "positives": r.positives[:1]}),
        (scored, lambda r: {"positives": r.positives[:1], "score": r.score or 0.5}),
        (chunks, lambda r: {"positives": r.positives[:1], "doc_ids": [r.id], "metadata": r.metadata}),
    ):
        expected = [
            of(record, **(kept | {"source": "a", "id": f"a:{line}"} | change(record)))
            for line, record in enumerate(given_records, 1)
        ]
        assert read(write_jsonl(tmp_path / "a.jsonl", rows)) == expected


@ALL_SETTINGS
@given(some, st.sampled_from(["a.csv", "a.tsv"]), st.sampled_from([("term", "definition"), ("anchor", "positive")]))
def test_records_survive_csv_and_tsv(tmp_path, given_records, name, header):
    with open(tmp_path / name, "w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(header)
        writer.writerows([record.query, record.positives[0]] for record in given_records)
    found = [(record.query, record.positives) for record in read(tmp_path / name)]
    assert found == [(record.query, record.positives[:1]) for record in given_records]


def test_a_mix_of_shapes_in_one_file_and_every_field_of_each(tmp_path):
    path = write_jsonl(
        tmp_path / "mix.jsonl",
        [
            PAIR | {"hard_negatives": ["n"]},
            {"query": "q", "pos": ["p1", "p2"], "neg": []},
            ["q", "item", 0.25],
            {"query": "q", "item": "i", "score": 1},
            {"chunk_id": 7, "question": "q", "answer": "a", "metadata": {"module": "m"}},
            {"term": "t", "definition": "d", "id": "own", "lang": "de"},
        ],
    )
    assert read(path) == [
        Record(PAIR["anchor"], [PAIR["positive"]], ["n"], source="mix", id="mix:1"),
        Record("q", ["p1", "p2"], source="mix", id="mix:2"),
        Record("q", ["item"], score=0.25, source="mix", id="mix:3"),
        Record("q", ["i"], score=1.0, source="mix", id="mix:4"),
        Record("q", ["a"], source="mix", id="mix:5", doc_ids=["7"], metadata={"module": "m"}),
        Record("t", ["d"], source="mix", id="own", metadata={"lang": "de"}),
    ]


def test_context_or_answer_is_chosen_and_the_other_text_is_kept(tmp_path):
    row = {"chunk_id": "c", "question": "q", "answer": "short", "context": "long", "metadata": {"m": 1}}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (answer,), (context,) = read(path, positive="answer"), read(path, positive="context")
    assert (answer.positives, answer.metadata) == (["short"], {"m": 1, "context": "long"})
    assert (context.positives, context.metadata) == (["long"], {"m": 1, "answer": "short"})


def test_extra_keys_go_to_metadata_and_are_named_once(tmp_path, capsys):
    path = tmp_path / "g.csv"
    path.write_text("term,definition,url,source\na,b,http://x,wiki\nc,d,,wiki\n")
    first, second = read(path)
    assert first.metadata == {"url": "http://x", "source": "wiki"}
    assert second.metadata == {"source": "wiki"}  # an empty cell is no value
    assert first.source == "g"
    assert capsys.readouterr().err == f"note: {path}: keys that are not used stay in metadata: url, source\n"


def test_null_and_nan_cells_of_tables(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "query": ["a", "b"],
        "positives": [["p"], ["q"]],
        "score": [float("nan"), 0.5],
        "day": [datetime.date(2024, 5, 17), None],
        # the columns of another shape, empty here
        "anchor": [None, None],
        "positive": pa.array([None, None], pa.string()),
    }
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    assert (first.score, second.score) == (None, 0.5)
    assert (first.metadata, second.metadata) == ({"day": "2024-05-17"}, {})


def test_two_inputs_of_one_name_are_told_apart(tmp_path, capsys):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "data.jsonl", [PAIR])
    files = [tmp_path / folder / "data.jsonl" for folder in "ab"]
    assert run(capsys, "compose", *files, "--output", tmp_path / "o.jsonl")[0] == 0
    assert [row["source"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["a/data.jsonl", "b/data.jsonl"]


def test_compose_is_repeatable_and_reads_its_own_output(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR, ["q", "i", 0.5]])
    for name in ("one.jsonl", "two.jsonl"):
        assert run(capsys, "compose", path, "--output", tmp_path / "new" / name)[0] == 0
    one = tmp_path / "new" / "one.jsonl"
    assert one.read_bytes() == (tmp_path / "new" / "two.jsonl").read_bytes()
    assert read(one) == read(path)
    assert run(capsys, "compose", one, "--output", tmp_path / "three.jsonl")[0] == 0
    assert (tmp_path / "three.jsonl").read_bytes() == one.read_bytes()


words = st.sampled_from(["mould", "wall", "damp", "window", "air", "frost", "wood", "oak", "leaf"])
sentences = st.lists(words, min_size=1, max_size=4).map(" ".join)


@ALL_SETTINGS
@given(st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=2), words), min_size=1, max_size=12))
def test_hard_negatives_are_never_positives(tmp_path, rows):
    from data_prep.mining.miner import add_hard_negatives

    made = [Record(query, positives, doc_ids=[doc] * len(positives)) for query, positives, doc in rows]
    add_hard_negatives(made, 3, "test")
    for record in made:
        assert len(set(record.negatives)) == len(record.negatives) <= 3
        for negative in record.negatives:
            assert set(negative.split()) & set(record.query.split())
            for other in made:
                if other.query == record.query or other.doc_ids[0] == record.doc_ids[0]:
                    assert negative not in other.positives


def test_hard_negatives_are_the_nearest_texts_and_shortfalls_are_said(tmp_path, capsys):
    rows = [
        Record("green oak leaf", ["The leaf of a green oak."], ["kept"]),
        Record("oak table", ["A table of GREEN OAK wood"]),
        Record("Green Oak  Leaf", ["oak leaf, green: the same query, another positive"]),
        Record("pine", ["Pine smells of resin and oak does not."]),
        Record("graded", ["green oak leaf graded"], score=0.1),
    ]
    path = write_records(tmp_path / "a.jsonl", rows)
    code, _, err = run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--hard-k", "2")
    assert code == 0
    found = read_jsonl(tmp_path / "o.jsonl")
    assert found[0]["negatives"] == ["kept", rows[4].positives[0], rows[1].positives[0]]
    assert found[3]["negatives"] == []
    assert found[4]["negatives"] == []
    assert "1 of 4 rows got fewer than 2 hard negatives" in err
    assert "1 rows with a score get no hard negatives" in err


def test_a_text_that_holds_the_positive_is_no_hard_negative(tmp_path, capsys):
    rows = [
        Record("call basicConfig", ["If the root logger has no handlers, call basicConfig to add one."]),
        Record("other", ["Note: if the root logger has no handlers, call basicConfig to add one. Then log."]),
        Record("third", ["basicConfig takes keyword arguments"]),
    ]
    path = write_records(tmp_path / "a.jsonl", rows)
    assert run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--hard-k", "2")[0] == 0
    assert read_jsonl(tmp_path / "o.jsonl")[0]["negatives"] == rows[2].positives


PAIRS = [
    {"question": "a", "answer": "b"},
    {"query": "a", "positive": "b", "negative": "c"},
    {"anchor": "a", "positive": "b", "negative": "c", "hard_negatives": ["d"]},
]


def test_pairs_and_triplets_under_the_names_people_use(tmp_path):
    records = list(read_records(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)))
    assert [(r.query, r.positives, r.negatives) for r in records] == [
        ("a", ["b"], []),
        ("a", ["b"], ["c"]),
        ("a", ["b"], ["d", "c"]),
    ]


def test_inspect_counts_planted_defects(tmp_path, capsys):
    rows = [
        {"query": "a", "pos": ["b c"]},
        {"query": "A ", "pos": ["B  c"]},  # exact duplicate after normalising
        {"query": "d", "pos": ["e", "b c"], "neg": ["E"]},  # shared positive, own negative
        {"query": "f", "pos": ["f"]},
        {"query": "a", "pos": ["new"]},
        "{",
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    code, out, _ = run(capsys, "inspect", path, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["rows"] == 5
    names = ("exact_duplicates", "duplicate_queries", "shared_positives", "positives_as_negatives")
    assert [report[name] for name in names] == [1, 2, 2, 1]
    assert report["query_equals_positive"] == 1
    assert report["problems"]["count"] == 1
    assert report["problems"]["shown"][0]["line"] == 6
    counted = {"p50": 1, "p90": 2, "p99": 2, "max": 2, "histogram": {"1": 4, "2": 1}}
    assert report["lengths"]["query"]["characters"] == counted
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    assert "1  rows whose query is one of their positives" in out
    assert "a.jsonl:6: invalid JSON" in out


def test_the_package_never_imports_torch_and_its_commands_start_light():
    code = (
        "import sys, pkgutil, importlib, data_prep, data_prep.__main__\n"
        "data_prep.__main__._parser()\n"
        "slow = {'torch', 'datasets', 'chromadb', 'pyarrow', 'bm25s', 'numpy', 'rich'} & set(sys.modules)\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(data_prep.__path__, 'data_prep.')]\n"
        "print(sorted(slow | {'torch', 'datasets', 'chromadb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
