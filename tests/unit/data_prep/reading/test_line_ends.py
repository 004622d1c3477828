"""Line ends of every system, whole numbers as pandas writes them, and numbers that JSON lacks."""

import csv
import json
import math

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.finite import is_finite, with_nulls
from data_prep.reading import files
from data_prep.reading.files import Blank, read_items
from data_prep.reading.formats import read_records
from data_prep.reading.row_problems import Problem
from data_prep.sharding import spool
from data_prep.shards.folder import open_shards
from tests.unit.data_prep.helpers import PAIR, read_jsonl, run, write_jsonl

ROWS = [{"anchor": f"question {i}", "positive": f"answer {i}", "id": f"r{i}"} for i in range(5)]
CONTENTS = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.json": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "a.csv": "anchor,positive,id\n" + "".join(",".join(row.values()) + "\n" for row in ROWS),
    "a.tsv": "anchor\tpositive\tid\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("end", ["\r", "\r\n"], ids=["CR", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_line_end_gives_the_same_rows_and_line_numbers(tmp_path, name, end, last):
    path = tmp_path / name
    path.write_bytes(CONTENTS[name].encode())
    expected = [(item.line, item.value) for item in read_items(path)]
    assert len(expected) == len(ROWS)
    content = CONTENTS[name].replace("\n", end)
    path.write_bytes((content if last else content.removesuffix(end)).encode())
    assert [(item.line, item.value) for item in read_items(path)] == expected


@pytest.mark.parametrize("name", CONTENTS)
def test_the_double_return_of_a_text_mode_on_windows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONTENTS[name].replace("\n", "\r\r\n").encode())
    found = [item.value for item in read_items(path) if not isinstance(item, Blank)]
    assert [{key: row[key] for key in ROWS[0]} for row in found] == ROWS


def test_lines_of_several_kinds_in_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    one, two, three, four, five = map(json.dumps, ROWS)
    path.write_bytes(f"{one}\r{two}\n{three}\r\n\r{four}\r\r{five}".encode())
    found = [item for item in read_items(path) if not isinstance(item, Blank)]
    assert [item.value for item in found] == ROWS
    assert [item.line for item in found] == [1, 2, 3, 5, 7]


def test_a_return_within_a_row_is_white_space_in_json_and_text_in_a_quoted_cell(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"anchor": "a",\r"positive": "b"}\n' + json.dumps(PAIR).encode())
    first, second = read_items(tmp_path / "a.jsonl")
    assert (first.value, second.value) == ({"anchor": "a", "positive": "b"}, PAIR)
    (tmp_path / "a.csv").write_bytes(b'anchor,positive\r"one\rtwo","b\nc"\rd,e\r')
    found = [(record.query, record.positives) for record in read_records(tmp_path / "a.csv")]
    assert found == [("one\rtwo", ["b\nc"]), ("d", ["e"])]


def test_a_bad_row_between_returns_is_named_by_its_line_and_a_broken_row_is_one_problem(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{json.dumps(PAIR)}\r{{oops\r{json.dumps(PAIR)}".encode())
    assert [(item.line, isinstance(item, Problem)) for item in read_items(path)] == [(1, False), (2, True), (3, False)]
    path.write_bytes(b'{"anchor": "a"\r"positive": "b"}\n')
    (problem,) = read_items(path)
    assert isinstance(problem, Problem)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"], ids=["CR", "CRLF", "LF"])
def test_shard_reads_them_in_spans_with_their_line_numbers(tmp_path, capsys, monkeypatch, end):
    monkeypatch.setattr(spool, "SPAN_BYTES", 40)
    lines = [json.dumps({"anchor": f"question {i}", "positive": f"answer {i}"}) for i in range(5)]
    (tmp_path / "a.jsonl").write_bytes((end.join(lines) + end).encode())
    flags = ("--eval-fraction", 0, "--workers", 1)
    code, _, err = run(capsys, "shard", tmp_path / "a.jsonl", "--output", tmp_path / "s", *flags)
    assert code == 0, err
    assert [row.id for row in open_shards(tmp_path / "s").split("train")] == [f"a:{i}" for i in range(1, 6)]


@pytest.mark.parametrize(
    "position, count, impressions",
    [("1.0", "2.0", "8.0"), ("1", "2.0", "8"), ("1e0", "2", "8.00"), (" 1.0", "2.", "8")],
)
def test_whole_numbers_as_pandas_writes_them(tmp_path, capsys, position, count, impressions):
    with open(tmp_path / "log.csv", "w", newline="", encoding="utf-8") as handle:
        header = ["query", "item", "position", "count", "impressions"]
        csv.writer(handle).writerows([header, ["flue", "pipe", position, count, impressions]])
    code, _, err = run(capsys, "logs", tmp_path / "log.csv", "--output", tmp_path / "o.jsonl")
    assert code == 0, err
    assert read_jsonl(tmp_path / "o.jsonl")[0]["metadata"] == {"clicks": 2, "impressions": 8}


@pytest.mark.parametrize("count", ["1.5", "nan", "inf", "two", "1,000"])
def test_what_is_no_whole_number_is_named(tmp_path, capsys, count):
    with open(tmp_path / "log.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["query", "item", "position", "count"], ["flue", "pipe", "1", count]])
    code, _, err = run(capsys, "logs", tmp_path / "log.csv", "--output", tmp_path / "o.jsonl")
    assert code == 2
    assert f"log.csv:2: key 'count' must be a whole number, not a text ({count!r})" in err


def test_counts_and_ids_of_a_parquet_log_with_empty_cells(tmp_path, capsys):
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    log = {"query": ["flue"] * 2, "item": [7.0, 8.0], "position": [1.0, 2.0], "count": [Decimal("2.0"), Decimal("3.0")]}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    write_jsonl(tmp_path / "items.jsonl", [{"id": 7, "text": "pipe"}, {"id": 8, "text": "cap"}])
    flags = ("--items", tmp_path / "items.jsonl")
    code, _, err = run(capsys, "logs", tmp_path / "log.parquet", "--output", tmp_path / "o.jsonl", *flags)
    assert code == 0, err
    assert [row["doc_ids"] for row in read_jsonl(tmp_path / "o.jsonl")] == [["7"], ["8"]]


def test_infinity_in_a_payload_is_written_as_null_and_said_and_shard_reads_it(tmp_path, capsys):
    pytest.importorskip("qdrant_client")
    from qdrant_client import QdrantClient, models

    text = "Opens the window.\n\nIt turns the handle, pulls the frame and lets the air of the garden in."
    payloads = [
        {"text": text, "price": math.inf, "size": 2.5, "list": [math.nan, 1]},
        {"text": f"{text} Out.", "size": 1.5},
    ]
    client = QdrantClient(path=str(tmp_path / "store"))
    size = models.VectorParams(size=1, distance=models.Distance.COSINE)
    client.create_collection("docs", vectors_config=size)
    points = [models.PointStruct(id=i, vector=[1.0], payload=payload) for i, payload in enumerate(payloads, 1)]
    client.upsert("docs", points)
    client.close()
    out = tmp_path / "pairs.jsonl"
    store = ("--store", "qdrant", "--path", tmp_path / "store", "--collection", "docs")
    code, _, err = run(capsys, "generate", "--offline", *store, "--output", out)
    assert code == 0, err
    assert "note: 1 pairs: their metadata holds NaN or infinity, which JSON lacks; null is written there" in err
    first, second = (row["metadata"] for row in read_jsonl(out))
    assert (first["price"], first["list"], first["size"], second["size"]) == (None, [None, 1], 2.5, 1.5)
    code, _, err = run(capsys, "shard", out, "--output", tmp_path / "s", "--eval-fraction", 0)
    assert code == 0, err


@pytest.mark.parametrize("row", [PAIR | {"price": "X"}, PAIR | {"metadata": {"sizes": [1, {"a": "X"}]}}])
@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_too_large_for_json_is_refused_and_not_written_as_infinity(tmp_path, row, number):
    path = write_jsonl(tmp_path / "a.jsonl", [json.dumps(row).replace('"X"', number)])
    with pytest.raises(BadInput, match=r"a.jsonl:1: key '(price|sizes)' holds NaN or infinity.*write null"):
        list(read_records(path))


def test_infinity_in_a_column_of_a_table_names_the_column(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"anchor": ["a"], "positive": ["b"], "price": [math.inf], "sizes": [[1.0, math.nan]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="key 'price' holds NaN or infinity.*key 'sizes' holds"):
        list(read_records(tmp_path / "a.parquet"))


def test_nulls_take_the_place_of_numbers_that_json_lacks_at_any_depth():
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": "Infinity", "d": True, "e": None}
    assert not is_finite(value)
    assert with_nulls(value) == {"a": [1.5, None, {"b": None}], "c": "Infinity", "d": True, "e": None}
    assert is_finite(with_nulls(value))


@pytest.mark.parametrize("rows_end", ["\r", "\r\n", "\n"], ids=["CR", "CRLF", "LF"])
@pytest.mark.parametrize("piece", [1, 7, 60, 200])
def test_a_file_of_an_old_mac_is_read_in_pieces(tmp_path, monkeypatch, piece, rows_end):
    """No read goes beyond a piece and a row, however long the file is; rows and line numbers stay."""
    path = tmp_path / "a.jsonl"
    rows = [row | {"anchor": "long " * i} for i, row in enumerate(ROWS[1:] * 8, 1)]
    path.write_bytes(b"".join(json.dumps(row).encode() + rows_end.encode() for row in rows))
    monkeypatch.setattr(files, "PIECE", piece)
    longest, as_it_was = 0, files.to_line_end

    def measured(*arguments) -> tuple[bytes, bytes]:
        nonlocal longest
        block, rest = as_it_was(*arguments)
        longest = max(longest, len(block) + len(rest))
        return block, rest

    monkeypatch.setattr(files, "to_line_end", measured)
    found = list(read_items(path))
    assert [item.value for item in found] == rows
    assert [item.line for item in found] == [*range(1, len(rows) + 1)]
    assert longest <= 3 * max(piece, len(json.dumps(rows[-1])) + 2)


@pytest.mark.parametrize("span_bytes", [1, 64, 500])
def test_spans_of_a_file_of_an_old_mac_are_its_rows(tmp_path, monkeypatch, span_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\r" for row in ROWS * 6))
    monkeypatch.setattr(files, "PIECE", 100)
    monkeypatch.setattr(spool, "SPAN_BYTES", span_bytes)
    spans = list(spool._spans(path))
    assert [item.value for span in spans for item in read_items(path, span)] == ROWS * 6
    assert len(spans) > 3 and max(span.stop - span.start for span in spans) <= span_bytes + 300


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e999"])
def test_a_number_beyond_all_floats_is_refused_in_words(tmp_path, capsys, number):
    """A score, a teacher's score, a count of a log and a grade of a retrieval set."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    for row in ('"score": ', '"negative": "c", "scores": [1, '):
        path.write_text(f'{{"anchor": "a", "positive": "b", {row}{number}{"]" if "[" in row else ""}}}\n')
        code, _, err = run(capsys, "compose", path, "--output", out)
        assert code == 2 and "it must be a finite number" in err
    path.write_text(f'{{"query": "q", "item": "i", "position": 1, "count": {number}}}\n')
    code, _, err = run(capsys, "logs", path, "--output", out)
    assert code == 2 and "key 'count' " in err
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text('{"_id": "1", "text": "t"}\n')
    (tmp_path / "qrels.tsv").write_text(f"1\t1\t{number}\n")
    code, _, err = run(capsys, "compose", write_jsonl(path, [PAIR]), "--output", out)
    assert code == 0
    code, _, err = run(capsys, "inspect", out, "--exclude", tmp_path)
    assert code == 2 and "qrels.tsv:1: needs query id, document id and a whole grade" in err
