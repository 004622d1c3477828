"""Writing shard folders: records to Arrow files split by document, the manifest last.

manifest.json: schema_version; rows {split: n}; files [{path, bytes, sha256, rows?}]; sources {name: {split: n}};
shared_keys {source: n} (see sharing.py); split {by, fraction, seed, groups larger than half kept in train, on_leakage,
dropped}; duplicates_removed; tokenizer (null: texts are not tokenised); lengths (see lengths.py); fingerprint (sha256
over the files' sorted paths and hashes).
No time, path or version stands in it: the same input and seed give the same bytes.
"""

import json
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.collect import Problems
from data_prep.formats import read_records, source_names
from data_prep.lengths import Lengths
from data_prep.output import check, fsync_folder, same_path, unfinished_name
from data_prep.problems import BadInput
from data_prep.progress import result, say, track
from data_prep.records import Record
from data_prep.shards import COLUMNS, MANIFEST, SCHEMA_VERSION, looks_unfinished, sha256_of
from data_prep.sharing import FILES as SHARING_FILES
from data_prep.sharing import by_source, write
from data_prep.splits import DROPPED, EVAL, TRAIN, Leak, SplitPlan

NAMES = {TRAIN: "train", EVAL: "eval"}
ON_LEAKAGE = ("refuse", "drop-train", "drop-eval")
BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20  # a batch of long texts stays far below Arrow's 2 GiB per column
SHARD_BYTES = 500 << 20  # as `datasets` cuts by default


def shard(
    inputs: list[Path],
    output: Path,
    *,
    num_shards: int | None = None,
    eval_fraction: float = 0.1,
    split_by: str | None = None,
    seed: int = 0,
    positive: str | None = None,
    on_leakage: str = "refuse",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes all rows of the inputs to the folder `output` and returns the manifest.

    num_shards: Arrow files of the train split (default: about 500 MB each). eval_fraction: expected share of groups in
    eval; 0 writes no eval split. split_by: a metadata field whose values are the groups (default: rows that share a
    document, positive or query text). on_leakage: what happens to a text in both splits, possible with split_by only.
    Records wait on disk beside the output, keys of about 200 bytes a row in memory. BadInput: everything wrong, listed.
    """
    assert on_leakage in ON_LEAKAGE
    check(_bad_options(inputs, output, num_shards, eval_fraction, overwrite))
    names = source_names(inputs)
    build = unfinished_name(output)
    if build.exists():
        say(f"removing what an interrupted run left: {build}")
        shutil.rmtree(build)
    build.mkdir(parents=True)
    try:
        plan = SplitPlan(split_by, eval_fraction, seed)
        _spool(names, build / "spool.jsonl", plan, positive)
        splits, dropped = _assign(plan, build / "spool.jsonl", on_leakage)
        counts = _checked_counts(plan, splits, num_shards)
        sources, numbers, source_of, lengths, files = _write_splits(build, splits, counts, num_shards)
        shared_keys, more_files = _write_sharing(build, plan, splits, numbers, source_of)
        files = sorted([*files, *more_files], key=lambda entry: entry["path"])
        (build / "spool.jsonl").unlink()
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "rows": counts,
            "files": files,
            "sources": sources,
            "shared_keys": shared_keys,
            "split": {
                "by": f"metadata.{split_by}" if split_by else "documents",
                "fraction": eval_fraction,
                "seed": seed,
                "large_group_kept_in_train": plan.kept_in_train,
                "on_leakage": on_leakage,
                "dropped": dropped,
            },
            "duplicates_removed": plan.duplicates,
            "scored_rows": plan.scored,
            "tokenizer": None,
            "lengths": lengths.summary(histogram=True),
            "fingerprint": _fingerprint(files),
        }
        _write_json(build / MANIFEST, manifest)
        fsync_folder(build)
        _put_in_place(build, output)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    _summary(output, manifest)
    return manifest


def _bad_options(
    inputs: list[Path], output: Path, num_shards: int | None, fraction: float, overwrite: bool
) -> list[str]:
    found = []
    if num_shards is not None and num_shards < 1:
        found.append(f"--num-shards {num_shards}: must be 1 or more")
    if not 0 <= fraction < 1:
        found.append(f"--eval-fraction {fraction:g}: must be in 0..1, below 1")
    for path in inputs:
        if same_path(path, output) or output.resolve() in path.resolve().parents:
            found.append(f"--output {output}: holds the input {path}; choose another folder")
    blocked = next((folder for folder in (output, *output.parents) if folder.exists() and not folder.is_dir()), None)
    if blocked:
        found.append(f"--output {output}: {blocked} is a file, not a folder")
    elif (output / MANIFEST).exists() and not overwrite:
        found.append(f"--output {output}: is a finished shard folder; choose another folder or add --overwrite")
    elif output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).exists():
        if looks_unfinished(output):
            say(f"{output} is unfinished (no {MANIFEST}) and will be replaced")
        else:
            found.append(f"--output {output}: holds other files; choose another folder")
    return found


def _spool(names: dict[Path, str], spool: Path, plan: SplitPlan, positive: str | None) -> None:
    """Reads every input once; kept rows wait in one file, because the split is known only after the last row."""
    problems = Problems()
    with open(spool, "w", encoding="utf-8", newline="\n") as handle:
        for path, name in names.items():
            rows = read_records(path, positive=positive, source=name, problems=problems)
            for record in track(rows, f"reading {path.name}"):
                if plan.add(record, problems):
                    handle.write(record.to_json() + "\n")
    problems.check()


def _spooled(spool: Path) -> Iterator[Record]:
    with open(spool, encoding="utf-8", newline="\n") as handle:
        yield from (Record(**json.loads(line)) for line in handle)


def _assign(plan: SplitPlan, spool: Path, on_leakage: str) -> tuple[bytearray, int]:
    splits = plan.assign()
    leaks = plan.leaks(splits)
    if not leaks:
        return splits, 0
    if on_leakage == "refuse":
        raise BadInput(_describe(leaks, spool))
    side = TRAIN if on_leakage == "drop-train" else EVAL
    return splits, plan.drop(splits, leaks, side)


def _describe(leaks: list[Leak], spool: Path, shown: int = 3) -> list[str]:
    wanted = {row for leak in leaks[:shown] for row in (leak.train_row, leak.eval_row)}
    records = {row: record for row, record in enumerate(_spooled(spool)) if row in wanted}
    rows = len({leak.train_row for leak in leaks})
    lines = [f"leakage: {len(leaks):,} texts or documents of eval are in train too (at least {rows:,} train rows)"]
    for leak in leaks[:shown]:
        train, held = records[leak.train_row], records[leak.eval_row]
        lines.append(f"train row {train.id} and eval row {held.id} share a text; eval query: {held.query[:80]!r}")
    lines.append("add --on-leakage drop-train or drop-eval to leave those rows out, or split without --split-by")
    return lines


def _checked_counts(plan: SplitPlan, splits: bytearray, num_shards: int | None) -> dict[str, int]:
    counts = {"train": splits.count(TRAIN)}
    if plan.fraction:
        counts["eval"] = splits.count(EVAL)
    mend = "change --eval-fraction or --seed, or give more documents"
    found = [f"no row is left for the {split} split: {mend}" for split, rows in counts.items() if not rows]
    if not found and num_shards and num_shards > counts["train"]:
        found.append(f"--num-shards {num_shards}: more than the {counts['train']} rows of train")
    if found and plan.kept_in_train:
        found.append(
            f"{plan.kept_in_train:,} of {len(plan):,} rows share texts or documents, so they stay in one split; "
            "--split-by FIELD splits them by a metadata field"
        )
    check(found)
    return counts


class _SplitWriter:
    """Writes one split as `datasets` does: contiguous shards, the first ones a row longer, then state and info."""

    def __init__(self, folder: Path, rows: int, num_shards: int, schema: Any):
        self.folder, self.schema, self.num_shards = folder, schema, num_shards
        share, more = divmod(rows, num_shards)
        self.sizes = [share + (i < more) for i in range(num_shards)]
        self.files: list[dict[str, Any]] = []
        self.buffer: list[dict[str, Any]] = []
        self.bytes = self.written = 0
        self.handle = self.stream = None
        folder.mkdir()

    def add(self, record: Record) -> None:
        row = {name: getattr(record, name) for name in COLUMNS}
        row["metadata"] = json.dumps(record.metadata, ensure_ascii=False, sort_keys=True)
        self.buffer.append(row)
        self.bytes += len(row["query"]) + sum(map(len, record.positives)) + sum(map(len, record.negatives))
        full = self.written + len(self.buffer) == self.sizes[len(self.files)]
        if full or len(self.buffer) >= BATCH_ROWS or self.bytes >= BATCH_BYTES:
            self._flush()
        if full:
            self._close_shard()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.handle is None:
            name = f"data-{len(self.files):05d}-of-{self.num_shards:05d}.arrow"
            self.handle = open(self.folder / name, "wb")  # noqa: SIM115 (closed by _close_shard)
            self.stream = pa.ipc.new_stream(self.handle, self.schema)
        self.stream.write_batch(pa.RecordBatch.from_pylist(self.buffer, schema=self.schema))
        self.written += len(self.buffer)
        self.buffer, self.bytes = [], 0

    def _close_shard(self) -> None:
        self.stream.close()
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.handle.close()
        self.files.append(_entry(Path(self.handle.name), self.folder.parent) | {"rows": self.written})
        self.handle, self.written = None, 0

    def finish(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Writes state.json and dataset_info.json; returns the manifest's entries of all files of the split."""
        assert len(self.files) == self.num_shards and not self.buffer
        state = {
            "_data_files": [{"filename": Path(entry["path"]).name} for entry in self.files],
            "_fingerprint": _fingerprint(self.files)[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self.folder.name,
        }
        for name, content in (("state.json", state), ("dataset_info.json", info)):
            _write_json(self.folder / name, content)
            self.files.append(_entry(self.folder / name, self.folder.parent))
        fsync_folder(self.folder)
        return self.files


def _features() -> tuple[Any, dict[str, Any]]:
    """The Arrow schema with the metadata that `datasets` expects, and the content of its dataset_info.json."""
    import datasets

    def feature(kind: str | list[str]) -> Any:
        return datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)

    features = datasets.Features({name: feature(kind) for name, kind in COLUMNS.items()})
    info = asdict(datasets.DatasetInfo(features=features))
    return features.arrow_schema, {key: info[key] for key in sorted(info)}


def _write_splits(
    build: Path, splits: bytearray, counts: dict[str, int], num_shards: int | None
) -> tuple[dict[str, dict[str, int]], dict[str, int], array, Lengths, list[dict[str, Any]]]:
    """Returns rows by source and split, a number of each train source, that number per train row, lengths, files."""
    schema, info = _features()
    size = (build / "spool.jsonl").stat().st_size / len(splits)  # mean bytes of a row
    writers = {}
    for split, rows in counts.items():
        by_size = min(rows, int(rows * size / SHARD_BYTES) + 1)
        wanted = num_shards if split == "train" and num_shards else by_size
        writers[split] = _SplitWriter(build / split, rows, wanted, schema)
    sources: dict[str, dict[str, int]] = {}
    numbers: dict[str, int] = {}
    source_of = array("q")
    lengths = Lengths()
    records = track(_spooled(build / "spool.jsonl"), "writing shards", total=len(splits))
    for record, split in zip(records, splits, strict=True):
        if split != DROPPED:
            writers[NAMES[split]].add(record)
            lengths.add(record)
            source = sources.setdefault(record.source, dict.fromkeys(counts, 0))
            source[NAMES[split]] += 1
        if split == TRAIN:
            source_of.append(numbers.setdefault(record.source, len(numbers)))
    files = [entry for writer in writers.values() for entry in writer.finish(info)]
    _write_json(build / "dataset_dict.json", {"splits": list(counts)})
    files.append(_entry(build / "dataset_dict.json", build))
    return dict(sorted(sources.items())), numbers, source_of, lengths, files


def _write_sharing(
    build: Path, plan: SplitPlan, splits: bytearray, numbers: dict[str, int], source_of: array
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The source of each train row and which rows share keys; returns each source's shared keys and the files."""
    import numpy as np

    names = sorted(numbers)
    place = np.argsort([numbers[name] for name in names])  # of each number's name among the sorted ones
    sources = by_source(names, place[np.frombuffer(source_of, np.int64)], *plan.train_pairs(splits))
    write(build, sources)
    for name in SHARING_FILES:
        with open(build / name, "rb") as handle:
            os.fsync(handle.fileno())
    files = [_entry(build / name, build) for name in SHARING_FILES]
    return {source.name: len(source.shared) for source in sources}, files


def _entry(file: Path, root: Path) -> dict[str, Any]:
    return {"path": file.relative_to(root).as_posix(), "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _fingerprint(files: list[dict[str, Any]]) -> str:
    import hashlib

    listed = sorted(f"{entry['path']} {entry['sha256']}" for entry in files)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        json.dump(content, handle, indent=2, ensure_ascii=False)
        handle.flush()
        os.fsync(handle.fileno())


def _put_in_place(build: Path, output: Path) -> None:
    """The old folder moves aside, the new one in, and only then the old one goes."""
    old = output.with_name(f".{output.name}.replaced")
    if old.exists():
        shutil.rmtree(old)
    if output.exists():
        os.rename(output, old)
    os.rename(build, output)
    fsync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _summary(output: Path, manifest: dict[str, Any]) -> None:
    rule = manifest["split"]
    if manifest["scored_rows"]:
        result(f"{output}: {manifest['scored_rows']:,} rows carry a score: train them with loss.name cosent or cosine")
    rows = ", ".join(f"{name} {count:,}" for name, count in manifest["rows"].items())
    result(f"{output}: {rows} rows; exact duplicates removed: {manifest['duplicates_removed']:,}")
    if rule["dropped"]:
        result(f"{output}: {rule['dropped']:,} rows dropped by --on-leakage {rule['on_leakage']}")
    if rule["large_group_kept_in_train"]:
        result(
            f"{output}: {rule['large_group_kept_in_train']:,} rows that share texts or documents were drawn for eval, "
            "but are more than half of all rows, so they stay in train; --split-by FIELD splits them"
        )
