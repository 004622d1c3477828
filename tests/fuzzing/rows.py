"""Target: every format of rows, through the commands that read them. What one writes, the next has to read."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.reading.formats import read_records
from data_prep.records import Record, text_key
from tests.fuzzing.case import Case, Finding, command
from tests.fuzzing.mutations import Draw, dumps

TARGET = "rows"
SHAPES = [
    {"query": "a query", "positives": ["a text"], "negatives": ["another"], "source": "s", "id": "1",
    "doc_ids": ["d1"]},
    {"chunk_id": "c1", "question": "Why?", "answer": "So.", "metadata": {"page": 1}, "context": "It is so."},
    {"anchor": "a", "positive": "b", "hard_negatives": ["c", "d"]},
    {"query": "q", "positive": "p", "negative_1": "n", "negative_2": "m", "score": [0.9, 0.1, 0.2]},
    {"query": "q", "positive": "p", "negative": "n", "pos_score": 0.9, "neg_score": 0.1},
    {"question": "Why?", "answer": "So."},
    {"query": "q", "pos": ["p", "r"], "neg": ["n"], "pos_scores": [1, 0.5], "neg_scores": [0]},
    {"query": "q", "item": "i", "score": 0.5},
    ["q", "i", 0.5],
    {"term": "t", "definition": "d"},
    {"query": "q", "positive": "p", "label": 1, "lang": "de"},
    {"query": "q", "positives": ["p"], "metadata": {"parent": "x:1", "parent_query": "Q", "page": 2}},
    {"sentence1": "a", "sentence2": "b", "score": 0.3},
]  # fmt: skip
LOG = {"query": "q", "item": "i", "position": 1, "count": 3, "impressions": 9}
ITEM = {"id": "i", "title": "t", "text": "the item"}
FLAGS = {
    "compose": ["--skip-bad", "--positive answer", "--columns query=sentence1,positive=sentence2", "--hard-k 1",
    "--balance page", "--per-value 1"],
    "shard": ["--positive context", "--split-by page", "--near-duplicates 0.8", "--num-shards 2",
    "--on-leakage drop-train", "--eval-fraction 0.5", "--workers 1"],
    "inspect": ["--json", "--positive answer", "--html page.html"],
    "logs": ["--rows lists", "--items items", "--eta 0", "--min-clicks 1", "--min-examined 0"],
    "mine": ["--corpus corpus", "--k 1", "--same-document page", "--strict", "--positive answer"],
    "augment": ["--typo-rate 1", "--case-rate 1", "--punctuation-rate 1", "--variants 3",
    "--transliteration-rate 1", "--score-scale 0.5"],
}  # fmt: skip
FORMATS = ["jsonl", "json", "csv", "tsv", "parquet", "arrow"]


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    name = d.pick([*FLAGS, "compose", "compose", "shard"])
    files: dict[str, bytes] = {}
    seed = LOG if name == "logs" else d.pick(SHAPES)
    inputs = [
        _add(d, files, f"in{i}", _rows(d, seed if not d.chance(5) else d.pick(SHAPES))) for i in range(1 + d.chance(5))
    ]
    flags = []
    for flag in FLAGS[name]:
        if d.chance(3):
            option, _, value = flag.partition(" ")
            if value in ("items", "corpus"):
                value = _add(d, files, value, _rows(d, ITEM))
            flags += [option, *([value] if value else [])]
    return Case(TARGET, {"command": name, "inputs": inputs, "flags": flags}, files)


def _rows(d: Draw, seed: Any) -> list:
    rows = []
    for number in range(1 + d.number(0, 3)):
        row = [*seed] if isinstance(seed, list) else dict(seed)
        if number and isinstance(row, dict):
            row |= {key: f"{value} {number}" for key, value in row.items() if isinstance(value, str)}
        for _ in d.times(2):
            row = d.mutated(row)
        rows.append(row)
    return rows


def _add(d: Draw, files: dict[str, bytes], stem: str, rows: list) -> str:
    """Writes the rows in a drawn format into `files`; returns the name of the input."""
    kind = d.pick(FORMATS)
    name = stem if kind == "arrow" else f"{stem}.{kind}"
    if d.chance(40):
        name = d.pick([f"{name}.gz", f"{stem}.txt", f"{stem}.JSONL", f"{stem}.json"])
    if kind in ("parquet", "arrow"):
        files |= _table(d, name, rows, kind)
        return name
    if kind in ("csv", "tsv"):
        text = _csv(d, rows, "\t" if kind == "tsv" else d.pick([",", ",", ",", ";"]))
    elif kind == "json":
        text = dumps(rows, ensure_ascii=d.chance(2), indent=d.pick([None, 1]))
    else:
        text = d.pick(["\n", "\n", "\n", "\r\n", "\r"]).join(dumps(row, ensure_ascii=d.chance(2)) for row in rows)
    files[name] = d.bytes_of(text)
    return name


def _csv(d: Draw, rows: list, comma: str) -> str:
    objects = [row if isinstance(row, dict) else {"query": row} for row in rows]
    columns = list(dict.fromkeys(key for row in objects for key in row))
    out = io.StringIO(newline="")
    unquoted = [csv.QUOTE_NONE] if len(columns) > 1 else []
    quoting = d.pick([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_MINIMAL, *unquoted])
    table = csv.writer(out, delimiter=comma, quoting=quoting, escapechar="\\" if quoting == csv.QUOTE_NONE else None)
    table.writerow(columns)
    for row in objects:
        table.writerow([_cell(row.get(column)) for column in columns])
    return out.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else dumps(value)


def _table(d: Draw, name: str, rows: list, kind: str) -> dict[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = [row if isinstance(row, dict) else {"query": row} for row in rows]
    columns = list(dict.fromkeys(key for row in objects for key in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in objects]
        try:
            if deeper(values, 20):  # Arrow's writers take exponential memory
                raise RecursionError
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, RecursionError, UnicodeError, TypeError):
            arrays.append(pa.array([dumps(value, ensure_ascii=True) for value in values]))
        if d.chance(10):
            arrays[-1] = _other_type(d, arrays[-1])
    try:
        table = pa.table(arrays, names=columns)
    except (pa.ArrowException, UnicodeError):
        table = pa.table(arrays, names=[f"c{i}" for i in range(len(columns))])
    out = io.BytesIO()
    try:
        if kind == "parquet":
            pq.write_table(table, out)
        else:
            with pa.ipc.new_stream(out, table.schema) as stream:
                stream.write_table(table)
    except (pa.ArrowException, OSError):  # a column that the format cannot hold
        out = io.BytesIO(b"PAR1")
    body = d.damaged_bytes(out.getvalue()) if d.chance(12) else out.getvalue()
    if kind == "parquet":
        return {name: body}
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "f", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    if d.chance(12):
        state, info = d.pick([(d.mutated(state), info), (state, d.mutated(info))])
    return {
        f"{name}/data.arrow": body,
        f"{name}/state.json": dumps(state).encode("utf-8", "replace"),
        f"{name}/dataset_info.json": dumps(info).encode("utf-8", "replace"),
    }


def deeper(value: Any, depth: int) -> bool:
    """Returns True if lists and objects lie deeper in each other than this."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one if isinstance(one, list) else one.values())
        ]
    return bool(level)


def _other_type(d: Draw, array):
    import datetime
    import decimal

    import pyarrow as pa

    values = [
        b"bytes\xff",
        decimal.Decimal("1.5"),
        datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2),
        datetime.timedelta(1),
        datetime.time(1),
    ]
    value = d.pick(values)
    try:
        if d.chance(3):
            return pa.array([str(one) for one in array.to_pylist()]).dictionary_encode()
        return pa.array([value] * len(array))
    except pa.ArrowException:
        return array


def check(case: Case, folder: Path) -> None:
    name, inputs, flags = case.data["command"], case.data["inputs"], case.data["flags"]
    output = "shards" if name == "shard" else "out.jsonl"
    given = [name, *inputs[: 1 if name == "inspect" else None], *flags]
    code = command(*given, *([] if name == "inspect" else ["--output", output]))
    if code or name == "inspect":
        return
    if name == "shard":
        check_shards(folder / output)
        return
    written = reread(folder / output)
    if not written:
        raise Finding(f"{name} wrote no row and ended with 0")
    if name == "compose":
        same_as_read(folder, case, written)
    if command("shard", output, "--output", "shards", "--eval-fraction", "0", "--workers", "1"):
        raise Finding(f"shard refuses what {name} wrote", printed_end())
    same_in_shards(folder / "shards", written)


def printed_end() -> str:
    from tests.fuzzing.case import printed

    return printed()[-500:]


def reread(path: Path) -> list[Record]:
    """Reads an output of ours again. It has to be whole."""
    body = path.read_bytes()
    lines = [json.loads(line) for line in body.decode().split("\n") if line]
    try:
        records = list(read_records(path))
    except BadInput as error:
        raise Finding("an output is refused by its reader", str(error)) from error
    if len(records) != len(lines):
        raise Finding("an output has other rows for its reader", f"{len(lines)} written, {len(records)} read")
    for record, line in zip(records, lines):
        if {name: getattr(record, name) for name in Record.__slots__} != line:
            raise Finding("a row of an output is read as another one", f"{line} {record}")
    return records


def same_as_read(folder: Path, case: Case, written: list[Record]) -> None:
    """compose without options that change rows writes what its inputs hold."""
    if {"--skip-bad", "--hard-k", "--balance"} & {*case.data["flags"]} or len(case.data["inputs"]) > 1:
        return
    flags = dict(zip(case.data["flags"][::2], case.data["flags"][1::2]))
    columns = {"sentence1": "query", "sentence2": "positive"} if "--columns" in flags else None
    read = list(read_records(folder / case.data["inputs"][0], positive=flags.get("--positive"), columns=columns))
    if read != written:
        raise Finding("compose changes a row", f"{read} {written}")


def check_shards(folder: Path) -> list[Record]:
    """Opens a shard folder as the trainer and as `datasets` do; both have the same rows."""
    import datasets

    from data_prep.shards.folder import open_shards

    shards, plain = open_shards(folder), datasets.load_from_disk(str(folder))
    records = []
    for split in shards.splits:
        ours = list(shards.split(split))
        theirs = [row | {"metadata": json.loads(row["metadata"])} for row in plain[split]]
        if [{name: getattr(record, name) for name in Record.__slots__} for record in ours] != theirs:
            raise Finding("datasets reads other rows than the trainer", f"{ours} {theirs}")
        records += ours
    if list(read_records(folder)) and shards.rows("train"):
        return records
    raise Finding("a finished shard folder has no rows")


def same_in_shards(folder: Path, written: list[Record]) -> None:
    """shard without a split keeps the first of equal rows, and those as they are."""

    def key(record: Record) -> tuple:
        texts = [*map(text_key, [record.query, *record.positives])], [*map(text_key, record.negatives)]
        return str(texts), record.score, str(record.teacher_scores)

    kept = check_shards(folder)
    first = {key(record): record for record in reversed(written)}
    if not all(record in written for record in kept) or {*map(key, kept)} != {*first}:
        raise Finding("shard changes or loses a row", f"{written} {kept}")
