"""Opens shard folders: memory-mapped Arrow files, and a manifest that was written last.

- DIR/train/data-00000-of-0000N.arrow (and eval/) have the format of `datasets.DatasetDict.save_to_disk`, so that
  `datasets.load_from_disk(DIR)` opens the folder too.
- DIR/manifest.json: see sharding/manifest.py. A folder without it is unfinished and refused.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.errors import BadInput, nearest
from data_prep.common.finite import decode_json
from data_prep.common.paths import nearest_beside
from data_prep.records import Record
from data_prep.remote.copies import MANIFEST, local
from data_prep.shards.shared_keys import SourceRows, read
from data_prep.shards.tokens import TokenArrays, TokenFacts

SCHEMA_VERSION = 2
SPLITS = ("train", "eval")
OPEN_FILES = 1 << 14  # of a split, those that were read last: Linux allows a process 65,530 maps in all
SPOOL = "spool"  # folder in an unfinished build
# One Arrow row is one Record; metadata is JSON text, as its keys differ from row to row.
COLUMNS = {
    "query": "string",
    "positives": ["string"],
    "negatives": ["string"],
    "score": "float64",
    "teacher_scores": ["float64"],
    "source": "string",
    "id": "string",
    "doc_ids": ["string"],
    "metadata": "string",
}


class Texts(NamedTuple):
    """Sizes of a column in some rows."""

    count: Any  # (rows,) int64 texts
    total: Any  # (rows,) int64 bytes of all texts


class Rows:
    """The rows of one split as Records. Files are memory-mapped: memory does not grow with the number of rows."""

    def __init__(self, files: Sequence[Path]):
        files = list(files)
        self._opened = lru_cache(OPEN_FILES)(lambda number: _mapped_batches(files[number]))
        self._places: list[tuple[int, int]] = []  # of each record batch: the number of its file, its number there
        self._starts: list[int] = []  # first row of each record batch
        self._length = 0
        for file in range(len(files)):
            for number, batch in enumerate(self._opened(file)):
                self._places.append((file, number))
                self._starts.append(self._length)
                self._length += batch.num_rows

    def _batch(self, number: int) -> Any:
        file, place = self._places[number]
        return self._opened(file)[place]

    def _batches(self) -> Iterator[Any]:
        return map(self._batch, range(len(self._places)))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Record:
        """Returns the record of one row. IndexError unless 0 <= row < len."""
        return self.take([row])[0]

    def __iter__(self) -> Iterator[Record]:
        for batch in self._batches():
            for start in range(0, batch.num_rows, 256):
                yield from (_record(row) for row in batch.slice(start, 256).to_pylist())

    def values(self, *columns: str) -> Iterator[tuple]:
        """Yields the values of some columns, row after row; metadata is JSON text."""
        for batch in self._batches():
            yield from zip(*(batch.column(name).to_pylist() for name in columns))

    def count(self, column: str, ids: Any = None) -> int:
        """Counts the rows, or those of the ascending ids, whose value is neither null nor an empty list."""
        count = 0
        for start, batch in zip(self._starts, self._batches()):
            filled = _filled(batch.column(column))
            if ids is not None:
                first, stop = ids.searchsorted([start, start + batch.num_rows])
                filled = filled[ids[first:stop] - start]
            count += int(filled.sum())
        return count

    def bytes_of(self, column: str, ids: Any) -> Texts:
        """Returns the number of texts, and their bytes, of a string or list column; texts are not read."""
        ids = np.asarray(ids)
        texts = Texts(np.ones(len(ids), np.int64), np.zeros(len(ids), np.int64))
        batch_of = np.searchsorted(self._starts, ids, side="right") - 1
        for number in np.unique(batch_of):
            in_batch = batch_of == number
            values = self._batch(number).column(column)
            first = ids[in_batch] - self._starts[number] + values.offset
            last = first + 1
            if hasattr(values, "offsets"):
                offsets = np.frombuffer(values.buffers()[1], np.int32)
                first, last = offsets[first], offsets[last]
                texts.count[in_batch] = last - first
                values = values.values
                first, last = first + values.offset, last + values.offset
            ends = np.frombuffer(values.buffers()[1], np.int32)
            texts.total[in_batch] = ends[last] - ends[first]
        return texts

    def take(self, ids: Sequence[int]) -> list[Record]:
        """Returns the records of these rows, in this order; a row may occur more than once."""
        import pyarrow as pa

        by_batch: dict[int, list[int]] = {}
        for index, row in enumerate(ids):
            if not 0 <= row < self._length:
                raise IndexError(f"row {row} of {self._length}")
            by_batch.setdefault(bisect_right(self._starts, row) - 1, []).append(index)
        records: dict[int, Record] = {}
        for batch, indices in sorted(by_batch.items()):  # file after file, as not all may stay open
            local = array("q", [int(ids[index]) - self._starts[batch] for index in indices])
            # from a buffer: pa.array would import pandas, half a second at every start
            local = pa.Array.from_buffers(pa.int64(), len(local), [None, pa.py_buffer(local)])
            records.update(zip(indices, map(_record, self._batch(batch).take(local).to_pylist())))
        return [records[index] for index in range(len(ids))]


def _mapped_batches(file: Path) -> list[Any]:
    """Returns the record batches of a file, memory-mapped as long as one of them is used."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all().to_batches()  # zero-copy


def _filled(values: Any) -> Any:
    """Returns bool for each value of a column: neither null nor empty. (pyarrow.compute would import pandas.)"""
    if hasattr(values, "offsets"):  # lists; a null one is empty too
        offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
        return np.diff(offsets) > 0
    if values.null_count in (0, len(values)):
        return np.full(len(values), values.null_count == 0)
    return np.array([value is not None for value in values.to_pylist()])


def _record(row: dict[str, Any]) -> Record:
    return Record(**{**row, "metadata": json.loads(row["metadata"])})


class ShardFolder:
    """An open shard folder. manifest: the parsed manifest.json."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self.fingerprint: str = manifest["fingerprint"]  # sha256; equal for equal rows in the same order
        self.splits: list[str] = [name for name in SPLITS if name in manifest["rows"]]  # train first

    def rows(self, split: str) -> int:
        """Returns the number of rows of a split."""
        self._known(split)
        return self.manifest["rows"][split]

    def split(self, name: str) -> Rows:
        """Opens the rows of a split. Raises BadInput for an unknown split."""
        self._known(name)
        files = [entry["path"] for entry in self.manifest["files"] if entry["path"].startswith(f"{name}/data-")]
        rows = Rows([self.path / file for file in files])
        if len(rows) != self.rows(name):
            stated = f"its manifest says {self.rows(name)}"
            raise BadInput(f"{self.path}: {name} has {len(rows)} rows, {stated}; run shard again")
        return rows

    def _known(self, split: str) -> None:
        if split not in self.splits:
            hint = nearest(split, self.splits)
            raise BadInput(f"{self.path}: has no split {split!r}; it has {', '.join(self.splits)}.{hint}")

    def train_sources(self) -> list[SourceRows]:
        """Opens the train rows by source and the keys that they share, memory-mapped; see shared_keys.py."""
        counts = {name: of["train"] for name, of in self.manifest["sources"].items() if of["train"]}
        return read(self.path, counts, self.manifest["shared_keys"])

    @property
    def token_facts(self) -> TokenFacts | None:
        """Tokenizer of the train rows' tokens; None if they are not tokenised."""
        recorded = self.manifest.get("tokenizer")
        return TokenFacts.of_manifest(recorded) if recorded else None

    def train_tokens(self) -> TokenArrays | None:
        """Opens the memory-mapped tokens of the train rows; None if they are not tokenised."""
        facts = self.token_facts
        return TokenArrays(self.path, facts) if facts else None


def open_shards(path: str | Path) -> ShardFolder:
    """Opens a shard folder, or the local copy of one at a URL.

    BadInput: no folder or manifest (unfinished), another schema, missing or cut files.
    """
    path = local(path)
    if not path.exists():
        mend = nearest_beside(path) or f" Write one with: python -m data_prep shard INPUT… --output {path}"
        raise BadInput(f"{path}: no such folder.{mend}")
    if not path.is_dir():
        mend = f"write one with: python -m data_prep shard {path} --output FOLDER"
        raise BadInput(f"{path}: is a file, not a shard folder; {mend}")
    if not (path / MANIFEST).is_file():
        raise BadInput(f"{path}: has no {MANIFEST}, so it is unfinished or no shard folder; run shard again")
    manifest = _read_manifest(path / MANIFEST)
    problems = []
    for entry in manifest["files"]:
        file = path / entry["path"]
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            problems.append(f"{file}: is missing, but listed in the manifest; run shard again")
        elif size != entry["bytes"]:
            problems.append(f"{file}: has {size} bytes, its manifest says {entry['bytes']}; run shard again")
    if problems:
        raise BadInput(problems)
    return ShardFolder(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = decode_json(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError, OSError):
        raise BadInput(f"{path}: is no shard manifest; run shard again") from None
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        mend = "install a newer embedfleet" if newer else "run shard again"
        raise BadInput(f"{path}: has schema_version {version!r}, this version reads {SCHEMA_VERSION}; {mend}")
    lacking = [key for key in ("rows", "files", "sources", "shared_keys", "fingerprint") if key not in manifest]
    if lacking:
        raise BadInput(f"{path}: key {lacking[0]!r} is missing; run shard again")
    return manifest
