"""manifest.json, the last file of a shard folder: what is in the folder, and how it was made.

| key | content |
| --- | --- |
| schema_version | see shards/folder.py |
| rows | {split: n} |
| files | [{path, bytes, sha256, rows?}] |
| sources | {name: {split: n}} |
| shared_keys | {source: n}, see shards/shared_keys.py |
| split | by, fraction, seed, large_group_kept_in_train (rows), on_leakage, dropped (rows) |
| duplicates_removed | rows |
| near_duplicates | similarity, removed, unsure; or null |
| excluded | rows {set: {"query" or "document": n}}, unsure; or null |
| scored_rows | rows with a score |
| tokenizer | null: texts are not tokenised; see tokens.py |
| lengths | see texts/lengths.py |
| fingerprint | sha256 over the sorted paths and hashes of the files, without tokens, which follow from the rows |
| findings | version, found: see gate.of_rows |

It holds no time, version of a package or number of workers: the same input and seed give the same bytes.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.console import result
from data_prep.common.files import fsync_folder
from data_prep.quality import checks, gate
from data_prep.sharding.split import EVAL, TRAIN, SplitPlan
from data_prep.sharding.spool import facts_of
from data_prep.sharding.write import WrittenSplits, fingerprint_of, write_json
from data_prep.shards.folder import MANIFEST, SCHEMA_VERSION, ShardFolder
from data_prep.shards.shared_keys import by_source, write

CODES = {"train": TRAIN, "eval": EVAL}
SIDES = (("query", "queries"), ("passage", "passages"))


class LeftOut(NamedTuple):
    """Rows in no split, as the manifest counts them."""

    duplicates: int
    near_duplicates: dict[str, Any] | None
    excluded: dict[str, Any] | None
    leaking: int


def write_manifest(
    build: Path,
    plan: SplitPlan,
    splits: Any,
    counts: dict[str, int],
    written: WrittenSplits,
    rule: dict[str, Any],
    left_out: LeftOut,
) -> dict[str, Any]:
    """Writes the files of shared keys and then the manifest, and deletes the spool; returns the manifest.

    splits: the split of every row, (rows,) uint8. counts: rows of each split. rule: how rows were split.
    """
    sources, source_of = _sources(plan, splits, list(counts))
    shared_keys, sharing_files = _write_sharing(build, plan, splits, sources, source_of)
    shutil.rmtree(plan.folder)
    files = [*written.files, *sharing_files]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "rows": counts,
        "files": sorted([*files, *written.token_files], key=lambda entry: entry["path"]),
        "sources": sources,
        "shared_keys": shared_keys,
        "split": rule | {"dropped": left_out.leaking},
        "duplicates_removed": left_out.duplicates,
        "near_duplicates": left_out.near_duplicates,
        "excluded": left_out.excluded,
        "scored_rows": written.scored,
        "tokenizer": written.tokens,
        "lengths": written.lengths.summary(),
        "fingerprint": fingerprint_of(files),
    }
    findings = gate.of_rows(ShardFolder(build, manifest))
    manifest["findings"] = {"version": gate.VERSION, "found": [finding.to_json() for finding in findings]}
    write_json(build / MANIFEST, manifest, build)
    fsync_folder(build)
    return manifest


def _sources(plan: SplitPlan, splits: Any, names: list[str]) -> tuple[dict[str, dict[str, int]], Any]:
    """Counts rows by source, sorted, and split; returns also each train row's index into the sources of train."""
    sources = sorted({source for part in plan.parts for source in part.sources})
    index = {source: i for i, source in enumerate(sources)}
    counts = np.zeros((len(names), len(sources)), np.int64)
    train, start = [], 0
    for part in plan.parts:
        with facts_of(plan.folder, part.number) as facts:
            source_of = np.array([index[name] for name in part.sources], np.int32)[facts["source"]]
        part_splits = splits[start : start + part.rows]
        for number, split in enumerate(names):
            counts[number] += np.bincount(source_of[part_splits == CODES[split]], minlength=len(sources))
        train.append(source_of[part_splits == TRAIN])
        start += part.rows
    train_sources = [number for number, count in enumerate(counts[names.index("train")]) if count]
    renumber = np.zeros(len(sources), np.int64)
    renumber[train_sources] = np.arange(len(train_sources))
    by_name = {name: dict(zip(names, of.tolist())) for name, of in zip(sources, counts.T) if of.any()}
    return by_name, renumber[np.concatenate(train)]


def _write_sharing(
    build: Path, plan: SplitPlan, splits: Any, sources: dict[str, dict[str, int]], source_of: Any
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Writes the sources of train rows and the keys that they share; returns {source: shared keys} and the entries."""
    names = [name for name, of in sources.items() if of["train"]]
    by_name = by_source(names, source_of, *plan.train_pairs(splits))
    return {source.name: len(source.shared) for source in by_name}, write(build, by_name)


def print_summary(output: Path, manifest: dict[str, Any]) -> None:
    """Prints the manifest for people."""
    rule = manifest["split"]
    if manifest["scored_rows"]:
        result(f"{output}: {manifest['scored_rows']:,} rows carry a score: train them with loss.name cosent or cosine")
    rows = ", ".join(f"{name} {count:,}" for name, count in manifest["rows"].items())
    result(f"{output}: {rows} rows; exact duplicates removed: {manifest['duplicates_removed']:,}")
    if near := manifest["near_duplicates"]:
        text = f"near duplicates removed (similarity {near['similarity']:g}): {near['removed']:,}"
        result(f"{output}: {text}{_unsure(near)}")
    if excluded := manifest["excluded"]:
        for name, of in excluded["rows"].items():
            counts = ", ".join(f"{count:,} hold a {kind} of it" for kind, count in of.items())
            result(f"{output}: train rows left out for {name}: {counts}")
        total = sum(sum(of.values()) for of in excluded["rows"].values())
        result(f"{output}: train rows left out by --exclude: {total:,}{_unsure(excluded)}")
    if tokens := manifest["tokenizer"]:
        cut = ", ".join(f"{tokens[f'cut_{many}']:,} {many} at {tokens[f'{one}_max_len']}" for one, many in SIDES)
        result(f"{output}: tokenised: {tokens['texts']:,} texts, {tokens['tokens']:,} tokens; cut: {cut}")
        for side, count in tokens.get("row_prompts", {}).items():
            result(f"{output}: {count:,} train rows have a {side} prompt of their own")
    if rule["dropped"]:
        result(f"{output}: {rule['dropped']:,} rows dropped by --on-leakage {rule['on_leakage']}")
    if rule["large_group_kept_in_train"]:
        result(
            f"{output}: {rule['large_group_kept_in_train']:,} rows that share texts or documents were drawn for eval, "
            "but are more than half of all rows, so they stay in train; --split-by FIELD splits them"
        )
    for finding in manifest["findings"]["found"]:
        result(f"{output}: warning: {checks.Finding.of_json(finding).line()}")


def _unsure(counts: dict[str, Any]) -> str:
    return f"; {counts['unsure']:,} rows had too many candidates to be sure of" if counts["unsure"] else ""
