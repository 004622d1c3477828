"""Compressed inputs and Parquet of any codec: the rows of plain files, one error for a damaged one, bounded memory."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.common.errors import BadInput
from data_prep.reading import files
from data_prep.reading.files import read_items, spans
from data_prep.reading.formats import read_records, source_names
from data_prep.reading.opening import stem_of
from data_prep.sharding.build import shard
from tests.unit.data_prep.helpers import documents, write_records

ROWS = [{"anchor": f"question {n}", "positive": f"answer {n} " + "word " * (n % 9)} for n in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    with pa.BufferOutputStream() as sink:
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(data)
        return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_a_compressed_file_has_the_rows_and_lines_of_the_plain_one(tmp_path, monkeypatch, suffix, ends):
    monkeypatch.setattr(files, "PIECE", 5000)
    data, plain = LINES.replace(b"\n", ends), tmp_path / "a.jsonl"
    plain.write_bytes(data)
    half = data.index(ends, len(data) // 2) + len(ends)
    packed = tmp_path / f"a.jsonl{suffix}"
    packed.write_bytes(PACK[suffix](data[:half]) + PACK[suffix](data[half:]))  # as `cat a.gz b.gz` joins archives
    assert list(read_items(packed)) == list(read_items(plain))
    assert next(read_records(packed)).id == "a:1" and stem_of(packed) == "a"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json"])
def test_other_texts_are_unpacked_too(tmp_path, name, suffix):
    comma = "\t" if name.endswith("tsv") else ","
    text = f"anchor{comma}positive\none{comma}two\n"
    text = json.dumps(ROWS[:2]) if name.endswith("json") else text
    (tmp_path / name).write_text(text)
    (tmp_path / (name + suffix)).write_bytes(PACK[suffix](text.encode()))
    assert list(read_items(tmp_path / (name + suffix))) == list(read_items(tmp_path / name))


@pytest.mark.parametrize("suffix", PACK)
def test_a_truncated_archive_is_one_error_with_the_line_it_ends_after(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    draw = random.Random(0)  # so that it packs badly: several pieces lie before the end
    rows = [{"anchor": f"{n}", "positive": draw.randbytes(600).hex()} for n in range(4000)]
    whole = PACK[suffix]("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(BadInput) as caught:
        list(read_records(path))
    (problem,) = caught.value.problems
    assert f"a.jsonl{suffix}: the {'gzip' if suffix == '.gz' else 'zstd'} archive ends early after line " in problem
    line = int(problem.split("after line ")[1].split(";")[0].replace(",", ""))
    assert 1000 < line <= 3000


@pytest.mark.parametrize(
    "name, data, says",
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-6] + b"\0" * 6, "the gzip archive is damaged (zlib inflate failed: inc"),
        ("a.jsonl.gz", LINES, "a.jsonl.gz: the gzip archive is damaged"),
        ("a.jsonl.zst", LINES, "in its first line; copy or make it again"),
        ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz: the file is empty"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(LINES)), "is compressed twice"),
        ("a.jsonl", gzip.compress(LINES), "a.jsonl: is gzip-compressed; name it a.jsonl.gz"),
        ("a.jsonl", zstd(LINES), "a.jsonl: is zstd-compressed; name it a.jsonl.zst"),
        ("a.parquet.gz", gzip.compress(b"PAR1"), "a Parquet file holds codecs of its own; unpack it"),
        ("a.txt.gz", gzip.compress(LINES), "unknown file type '.txt.gz'; accepted: .jsonl .json .csv"),
    ],
    ids=range(9),
)
def test_what_is_no_readable_archive_is_one_clear_error(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput) as caught:
        list(read_records(tmp_path / name))
    (problem,) = caught.value.problems
    assert says in problem and "\n" not in problem


def test_inputs_are_named_without_their_codec(tmp_path):
    paths = [tmp_path / "one.jsonl.gz", tmp_path / "two.v1.csv.zst", tmp_path / "three.parquet", tmp_path / "old.gz"]
    assert list(source_names(paths).values()) == ["one", "two.v1", "three", "old"]


@pytest.mark.parametrize("codec", ["zstd", "gzip", "snappy", "lz4", "brotli", "none"])
def test_parquet_is_read_by_row_groups_whatever_its_codec(tmp_path, codec):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression=codec, row_group_size=400)
    cut = list(spans(path, 1))
    assert [(span.start, span.stop, span.line) for span in cut] == [(n, n + 1, 400 * n + 1) for n in range(8)]
    assert len(list(spans(path, 30_000))) in range(2, 8) and len(list(spans(path, 1 << 30))) == 1
    found = [item for span in cut for item in read_items(path, span)]
    assert [item.value for item in found] == ROWS and [item.line for item in found] == [*range(1, len(ROWS) + 1)]
    assert found == list(read_items(path))


def test_a_file_without_rows_is_said(tmp_path):
    pq.write_table(
        pa.table({"anchor": pa.array([], "string"), "positive": pa.array([], "string")}), tmp_path / "a.parquet"
    )
    with pytest.raises(BadInput, match="a.parquet: has no rows"):
        shard([tmp_path / "a.parquet"], tmp_path / "out")


def test_shards_have_the_same_bytes_however_the_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sharding.spool.SPAN_BYTES", 2000)
    rows = [record.to_json() for record in documents(30)]
    manifests = []
    for number, suffix in enumerate((".jsonl", ".jsonl.gz", ".parquet")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = write_records(folder / "rows.jsonl", documents(30))
        if suffix == ".jsonl.gz":
            path.with_name("rows.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        elif suffix == ".parquet":
            values = [{key: value for key, value in json.loads(row).items() if key != "metadata"} for row in rows]
            pq.write_table(pa.Table.from_pylist(values), folder / "rows.parquet", row_group_size=7)
        manifests.append(shard([folder / f"rows{suffix}"], folder / "out"))
    assert manifests[0] == manifests[1] == manifests[2]
