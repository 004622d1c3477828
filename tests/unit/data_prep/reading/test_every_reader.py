"""A record is the same through every reader and writer: JSONL, JSON, CSV, TSV, Parquet, datasets and shard folders."""

import csv
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.finite import is_finite
from data_prep.composing.compose import compose
from data_prep.reading.formats import read_records
from data_prep.records import Record, has_text, text_key
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards

ODD = st.sampled_from(
    ["\r", "\n", "\r\n", "\u2028", "\x85", "\x00", "\x1c", '"', "'", ",", "\t", "\\", "\ufeff", "😀", "e\u0301"]
)
TEXT = st.lists(st.one_of(st.text(max_size=6), ODD), max_size=5).map("".join).filter(has_text)
VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
VALUES = st.recursive(VALUE, lambda inner: st.lists(inner, max_size=2), max_leaves=4)
METADATA = st.dictionaries(st.sampled_from(["page", "Größe", "a b", "url"]), VALUES)


@st.composite
def records(draw) -> Record:
    positives, negatives = draw(st.lists(TEXT, min_size=1, max_size=3)), draw(st.lists(TEXT, max_size=2))
    count = len(positives) + len(negatives)
    number = st.floats(allow_nan=False, allow_infinity=False, width=32)
    return Record(
        draw(TEXT), positives, negatives,
        score=draw(st.none() | st.floats(0, 1)),
        teacher_scores=draw(st.none() | st.lists(number, min_size=count, max_size=count)),
        source="s", id=draw(TEXT),
        doc_ids=draw(st.just([]) | st.lists(TEXT, min_size=len(positives), max_size=len(positives))),
        metadata=draw(METADATA),
    )  # fmt: skip


SOME = st.lists(records(), min_size=1, max_size=4, unique_by=lambda record: text_key(record.query))


def fields(record: Record) -> dict:
    return {name: getattr(record, name) for name in Record.__slots__}


def write_csv(path: Path, rows: list[dict], comma: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle, delimiter=comma)
        table.writerow(Record.__slots__)
        for row in rows:
            table.writerow([cell(value) for value in row.values()])


def cell(value) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"metadata": json.dumps(row["metadata"])} for row in rows]
    texts = pa.list_(pa.string())
    types = dict.fromkeys(("positives", "negatives", "doc_ids"), texts)
    types |= {"score": pa.float64(), "teacher_scores": pa.list_(pa.float64())}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in Record.__slots__])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


@settings(max_examples=25)
@given(SOME)
def test_records_come_back_from_every_kind_of_file(some):
    rows = [fields(record) for record in some]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [record.to_json() for record in some]
        (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
        (folder / "b.jsonl").write_bytes("\r\n".join(json.dumps(row) for row in rows).encode("utf-8-sig"))
        (folder / "a.json").write_bytes(json.dumps(rows, indent=1).encode())
        (folder / "b.json").write_bytes(f"\ufeff[{','.join(lines)}]".encode())
        write_csv(
            folder / "a.csv", [row | {"score": "" if row["score"] is None else row["score"]} for row in rows], ","
        )
        write_csv(
            folder / "a.tsv", [row | {"score": "" if row["score"] is None else row["score"]} for row in rows], "\t"
        )
        write_parquet(folder / "a.parquet", rows)
        for path in sorted(folder.iterdir()):
            assert list(read_records(path)) == some, path.name


@settings(max_examples=10)
@given(SOME)
def test_records_come_back_from_what_is_written_and_from_both_loaders(some):
    """compose writes JSONL, shard a folder: read by us, by `datasets`, and once more as an input."""
    import datasets

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_bytes("".join(record.to_json() + "\n" for record in some).encode())
        compose([folder / "in.jsonl"], folder / "out.jsonl")
        assert list(read_records(folder / "out.jsonl")) == some
        shard([folder / "out.jsonl"], folder / "shards", eval_fraction=0)
        ours = list(open_shards(folder / "shards").split("train"))
        theirs = [
            Record(**row | {"metadata": json.loads(row["metadata"])})
            for row in datasets.load_from_disk(str(folder / "shards"))["train"]
        ]
        assert ours == theirs == some
        plain = folder / "plain"
        datasets.load_from_disk(str(folder / "shards"))["train"].save_to_disk(str(plain))
        assert list(read_records(plain)) == some
        assert all(is_finite(record.metadata) for record in ours)
