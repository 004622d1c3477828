"""The spool: rows on disk between reading and writing, because the splits are known only after the last row.

- A part holds the n rows of one task. NNNNNN.arrow: the records as they will be written. NNNNNN.npz: the facts that
  decide on them (table below).
- After the split, NNNNNN.train.npy and NNNNNN.eval.npy list the rows of each split (int32, ascending).

| array | content |
| --- | --- |
| same (n, 2) uint64 | equal for exact duplicates |
| keys int64, keys_of (n,) int32 | keys of query, positives and documents, row after row; their number per row |
| group (n,) int64 | only with a field to split by: key of its value |
| source (n,) int32 | index into the part's `sources` |
| positives, negatives (n,) int32 | number of each |
| characters, words uint32 | of each text: query, positives, negatives, row after row |
| near_keys, near_sizes, excluded | by option, see exclusions.py |
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.common.files import named_when_whole
from data_prep.reading.files import Span, spans
from data_prep.reading.formats import Notes, read_span
from data_prep.reading.row_problems import Problems, field_value
from data_prep.records import Record, count_words, is_variant, query_key, text_key
from data_prep.remote.location import Location
from data_prep.sharding.exclusions import Exclusions, Marks
from data_prep.shards.columns import arrow_schema, to_batch
from data_prep.texts.lengths import FIELDS, Lengths

SPAN_BYTES = 4 << 20  # of a JSONL file, or of Parquet when unpacked: read by one task
BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20  # a batch of long texts stays far below Arrow's 2 GiB per column


class ReadTask(NamedTuple):
    """An input, or some lines of it, to read into one part."""

    part: int
    path: Path | Location
    span: Span | None  # None: the whole input
    source: str
    folder: Path  # the spool
    positive: str | None
    split_by: str | None
    exclusions: Exclusions
    columns: dict[str, str] | None = None  # see read_records


@dataclass
class Part:
    """The result of one task."""

    number: int
    path: Path | Location
    span: Span | None = None  # as in ReadTask
    rows: int = 0
    bytes: int = 0  # of its Arrow file
    sources: list[str] = field(default_factory=list)  # names, by the numbers in the array `source`
    sets: list[tuple[str, str]] = field(default_factory=list)  # see exclusions.Marks
    unsure: int = 0
    problems: Problems = field(default_factory=Problems)
    notes: Notes = field(default_factory=Notes)


def read_tasks(
    names: dict[Path | Location, str],
    folder: Path,
    positive: str | None,
    split_by: str | None,
    exclusions: Exclusions,
    columns: dict[str, str] | None = None,
) -> Iterator[ReadTask]:
    """Yields the tasks of all inputs, in order. JSONL and Parquet files are cut; another input is one task."""
    number = 0
    for path, name in names.items():
        for span in _spans(path):
            yield ReadTask(number, path, span, name, folder, positive, split_by, exclusions, columns)
            number += 1


def _spans(path: Path | Location) -> Iterator[Span | None]:
    try:
        yield from spans(path, SPAN_BYTES)
    except BadInput:  # the task reports it
        yield None


def read_part(task: ReadTask) -> Part:
    """Reads the rows of a task into its part. Its `problems` list bad rows, or an unreadable input."""
    import pyarrow as pa

    part, schema = Part(task.part, task.path, task.span), arrow_schema()
    facts, marks = _Facts(task.split_by), Marks(task.exclusions)
    rows_file, facts_file = (Path(_file(task.folder, task.part, kind)) for kind in ("arrow", "npz"))
    with (
        named_when_whole(rows_file, task.folder) as name,
        pa.OSFile(str(name), "wb") as file,
        pa.ipc.new_stream(file, schema) as stream,
    ):

        def write(rows: list[Record]) -> None:
            stream.write_batch(to_batch(rows, schema))
            marks.add(rows)

        waiting: list[Record] = []
        size = 0
        input_rows = task.path, task.span, task.positive, task.source
        for record in read_span(*input_rows, part.problems, part.notes, task.columns):
            size += facts.add(record, part.problems)
            waiting.append(record)
            if len(waiting) >= BATCH_ROWS or size >= BATCH_BYTES:
                write(waiting)
                waiting, size = [], 0
        if waiting:
            write(waiting)
        part.rows, part.sources = len(facts.source), list(facts.sources)
        part.sets, part.unsure = list(marks.sets), marks.unsure
        part.bytes = file.tell()
    save_arrays(facts_file, **facts.arrays(), **marks.arrays())
    return part


def save_arrays(file: Path, **arrays: Any) -> None:
    """Writes an .npz file of the spool."""
    with named_when_whole(file, file.parent) as name, open(name, "wb") as handle:
        np.savez(handle, **arrays)


def facts_of(folder: Path, part: int) -> Any:
    """Opens the arrays of a part, by name; each is read on access. The caller closes it."""
    return np.load(_file(folder, part, "npz"))


class Piece(NamedTuple):
    """`count` of the rows of a part in one split, from the `first` of them on."""

    part: int
    first: int
    count: int


def choose(folder: Path, parts: list[Part], splits: Any, codes: dict[str, int]) -> dict[str, list[int]]:
    """Writes the list of rows of each part and split; returns for each split its number of rows by part.

    splits: the code of each row's split, (rows of all parts,). codes: {split: code}.
    """
    counts: dict[str, list[int]] = {name: [] for name in codes}
    start = 0
    for part in parts:
        part_splits = splits[start : start + part.rows]
        for name, code in codes.items():
            rows = np.flatnonzero(part_splits == code).astype(np.int32)
            np.save(_file(folder, part.number, f"{name}.npy"), rows)
            counts[name].append(len(rows))
        start += part.rows
    return counts


def cut(counts: list[int], sizes: Iterable[int]) -> Iterator[list[Piece]]:
    """Cuts the rows of a split into runs of these sizes, one after the other. counts: its rows by part."""
    part = first = 0
    for size in sizes:
        pieces = []
        while size > 0 and part < len(counts):
            taken = min(size, counts[part] - first)
            if taken:
                pieces.append(Piece(part, first, taken))
            size, first = size - taken, first + taken
            if first == counts[part]:
                part, first = part + 1, 0
        yield pieces


def batches_of(folder: Path, split: str, pieces: list[Piece]) -> Iterator[tuple[Any, Any]]:
    """Yields the rows of these pieces as pyarrow record batches, with the characters of each row, (rows,) int64."""
    import pyarrow as pa

    for piece in pieces:
        rows = _rows_of(folder, split, piece)
        with facts_of(folder, piece.part) as facts:
            texts = 1 + facts["positives"] + facts["negatives"]
            sizes = np.add.reduceat(facts["characters"], texts.cumsum() - texts, dtype=np.int64)[rows]
        start = 0
        with pa.OSFile(_file(folder, piece.part, "arrow")) as file:
            for batch in pa.ipc.open_stream(file):
                first, stop = rows.searchsorted([start, start + batch.num_rows])
                if stop > first:
                    local = (rows[first:stop] - start).astype(np.int64)
                    local = pa.Array.from_buffers(pa.int64(), len(local), [None, pa.py_buffer(local)])
                    yield batch.take(local), sizes[first:stop]
                start += batch.num_rows


def add_lengths(lengths: Lengths, folder: Path, split: str, pieces: list[Piece]) -> None:
    """Adds the lengths of the texts of these pieces' rows."""
    for piece in pieces:
        with facts_of(folder, piece.part) as facts:
            counts = np.stack([np.ones_like(facts["positives"]), facts["positives"], facts["negatives"]], axis=1)
            chosen = np.zeros(len(counts), bool)
            chosen[_rows_of(folder, split, piece)] = True
            chosen = np.repeat(chosen, counts.sum(axis=1))
            field_of = np.repeat(np.tile(np.arange(3), len(counts)), counts.ravel())
            for number, name in enumerate(FIELDS):
                of_field = chosen & (field_of == number)
                lengths.add_all(name, facts["characters"][of_field], facts["words"][of_field])


def _rows_of(folder: Path, split: str, piece: Piece) -> Any:
    return np.load(_file(folder, piece.part, f"{split}.npy"))[piece.first : piece.first + piece.count]


def arrow_files(folder: Path, parts: list[Part]) -> list[Path]:
    """Lists the Arrow files of all parts, in order."""
    return [Path(_file(folder, part.number, "arrow")) for part in parts]


def _file(folder: Path, part: int, kind: str) -> str:
    return str(folder / f"{part:06d}.{kind}")


class _Facts:
    """The facts of the rows of a part, beside their texts."""

    def __init__(self, split_by: str | None):
        self.split_by = split_by
        self.sources: dict[str, int] = {}
        self.same = bytearray()
        self.keys, self.keys_of, self.group = array("q"), array("i"), array("q")
        self.source, self.positives, self.negatives = array("i"), array("i"), array("i")
        self.characters, self.words = array("I"), array("I")

    def add(self, record: Record, problems: Problems) -> int:
        """Adds the next row; returns the characters of its texts."""
        variant = is_variant(record)
        texts = [text_key(record.query), *map(text_key, record.positives)]
        query = record.query if variant else texts[0]
        same = repr((query, sorted(texts[1:]), record.score)).encode()
        self.same += hashlib.blake2b(same, digest_size=16).digest()
        documents = [_key("document", doc) for doc in record.doc_ids]
        keys = dict.fromkeys([query_key(record), *texts, *documents] if variant else texts + documents)
        self.keys.extend(keys)
        self.keys_of.append(len(keys))
        if self.split_by:
            value = field_value(record, self.split_by, "--split-by", problems)
            self.group.append(_key("field", json.dumps(value)))
        self.source.append(self.sources.setdefault(record.source, len(self.sources)))
        self.positives.append(len(record.positives))
        self.negatives.append(len(record.negatives))
        size = 0
        for text in (record.query, *record.positives, *record.negatives):
            size += len(text)
            self.characters.append(len(text))
            self.words.append(count_words(text))
        return size

    def arrays(self) -> dict[str, Any]:
        arrays = {name: np.asarray(values) for name, values in vars(self).items() if isinstance(values, array)}
        return arrays | {"same": np.frombuffer(self.same, np.uint64).reshape(-1, 2)}


def _key(kind: str, value: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{kind}:{value}".encode(), digest_size=8).digest(), "big") >> 1
