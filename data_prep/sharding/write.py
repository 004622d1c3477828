"""The second pass of `shard`: writes rows of the spool to the files of the splits, and their token arrays."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import track
from data_prep.common.files import HashedFile, fsync_folder, named_when_whole
from data_prep.common.workers import Workers
from data_prep.sharding import tokenise
from data_prep.sharding.spool import BATCH_BYTES, BATCH_ROWS, Part, Piece, add_lengths, batches_of, cut
from data_prep.shards.columns import arrow_schema, features
from data_prep.shards.folder import SPOOL
from data_prep.texts.lengths import Lengths

SHARD_BYTES = 500 << 20  # as `datasets` cuts by default


class WrittenSplits(NamedTuple):
    """The result of the pass, for the manifest."""

    files: list[dict[str, Any]]  # entries
    token_files: list[dict[str, Any]]  # entries
    tokens: dict[str, Any] | None  # the key `tokenizer`
    scored: int  # rows with a score
    lengths: Lengths


def write_splits(
    pool: Workers,
    build: Path,
    parts: list[Part],
    rows_of: dict[str, list[int]],
    num_shards: int | None,
    tokenizer: tokenise.Loaded | None,
) -> WrittenSplits:
    """Writes the splits as `datasets` does, and the tokens of train. rows_of: {split: rows by part}."""
    mean_bytes = sum(part.bytes for part in parts) / sum(part.rows for part in parts)
    tasks: list[WriteTask | tokenise.TokenTask] = []
    for split, counts in rows_of.items():
        (build / split).mkdir()
        rows = sum(counts)
        by_size = min(rows, int(rows * mean_bytes / SHARD_BYTES) + 1)
        tasks += _write_tasks(build, split, counts, num_shards if split == "train" and num_shards else by_size)
    if tokenizer:
        tasks += tokenise.token_tasks(build / SPOOL, rows_of["train"], tokenizer)
    total = sum(map(sum, rows_of.values())) + (sum(rows_of["train"]) if tokenizer else 0)
    label = "writing and tokenising rows" if tokenizer else "writing shards"
    done = list(track(pool.map(_work, tasks), label, total, lambda one: one.rows, pool.note))
    written = [one for one in done if isinstance(one, WrittenFile)]
    files, lengths = [one.entry for one in written], Lengths()
    for one in written:
        lengths.merge(one.lengths)
    for split in rows_of:
        files += _describe_split(build / split, [entry for entry in files if entry["path"].startswith(f"{split}/")])
    files.append(write_json(build / "dataset_dict.json", {"splits": list(rows_of)}, build))
    tokens, token_files = None, []
    if tokenizer:
        tokens, token_files = tokenise.join_tokens(build / SPOOL, done[len(written) :], tokenizer, build)
    return WrittenSplits(files, token_files, tokens, sum(one.scored for one in written), lengths)


class WriteTask(NamedTuple):
    """An Arrow file of a split to write, and its rows in the spool."""

    spool: Path
    split: str
    pieces: list[Piece]
    file: Path


class WrittenFile(NamedTuple):
    """An Arrow file of a split."""

    entry: dict[str, Any]  # of the manifest
    rows: int
    scored: int  # rows with a score
    lengths: Lengths


def _write_tasks(build: Path, split: str, counts: list[int], shards: int) -> list[WriteTask]:
    """Cuts a split into contiguous shards, the first ones a row longer, as `datasets` does."""
    share, more = divmod(sum(counts), shards)
    sizes = [share + (number < more) for number in range(shards)]
    files = [build / split / f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    return [WriteTask(build / SPOOL, split, pieces, file) for pieces, file in zip(cut(counts, sizes), files)]


def _work(task: WriteTask | tokenise.TokenTask) -> WrittenFile | tokenise.TokenPart:
    return _write_file(task) if isinstance(task, WriteTask) else tokenise.make_tokens(task)


def _write_file(task: WriteTask) -> WrittenFile:
    lengths = Lengths()
    with named_when_whole(task.file, task.spool) as name:
        writer = SplitWriter(name)
        for batch, sizes in batches_of(task.spool, task.split, task.pieces):
            writer.add(batch, sizes)
        writer.finish()
    add_lengths(lengths, task.spool, task.split, task.pieces)
    writer.file.path = task.file
    entry = writer.file.entry(task.file.parent.parent) | {"rows": writer.rows}
    return WrittenFile(entry, writer.rows, writer.scored, lengths)


class SplitWriter:
    """Writes rows of a split to one Arrow file, in the record batches in which `datasets` writes them."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self.file = HashedFile(path)
        self.stream = pa.ipc.new_stream(self.file, arrow_schema())
        self.waiting: list[Any] = []
        self.waiting_rows = self.waiting_characters = self.rows = self.scored = 0

    def add(self, batch: Any, sizes: Any) -> None:
        """Adds rows. sizes: characters of each one's texts, (rows,)."""
        while batch.num_rows:
            to_full = int(sizes.cumsum().searchsorted(BATCH_BYTES - self.waiting_characters)) + 1
            taken = min(batch.num_rows, BATCH_ROWS - self.waiting_rows, to_full)
            self.waiting.append(batch.slice(0, taken))
            self.waiting_rows += taken
            self.waiting_characters += int(sizes[:taken].sum())
            if self.waiting_rows == BATCH_ROWS or self.waiting_characters >= BATCH_BYTES:
                self._flush()
            batch, sizes = batch.slice(taken), sizes[taken:]

    def _flush(self) -> None:
        import pyarrow as pa

        (batch,) = pa.Table.from_batches(self.waiting).combine_chunks().to_batches()
        self.stream.write_batch(batch)
        self.rows += batch.num_rows
        self.scored += batch.num_rows - batch.column("score").null_count
        self.waiting, self.waiting_rows, self.waiting_characters = [], 0, 0

    def finish(self) -> None:
        """Closes the file."""
        if self.waiting:
            self._flush()
        self.stream.close()
        self.file.close()


def _describe_split(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes state.json and dataset_info.json of a split; returns their entries. entries: of its Arrow files."""
    state = {
        "_data_files": [{"filename": Path(entry["path"]).name} for entry in entries],
        "_fingerprint": fingerprint_of(entries)[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    info = {"citation": "", "description": "", "features": features(), "homepage": "", "license": ""}
    named = (("state.json", state), ("dataset_info.json", info))
    entries_written = [write_json(folder / name, content, folder.parent) for name, content in named]
    fsync_folder(folder)
    return entries_written


def fingerprint_of(entries: list[dict[str, Any]]) -> str:
    """sha256 over the sorted paths and hashes of files."""
    listed = sorted(f"{entry['path']} {entry['sha256']}" for entry in entries)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any], root: Path) -> dict[str, Any]:
    """Writes a JSON file to the disk; returns its entry of the manifest in `root`."""
    with HashedFile(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode())
    return file.entry(root)
