"""Definitions of this subject."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import result
from data_prep.common.files import sha256_of
from data_prep.quality import checks, gate
from data_prep.sharding.split import EVAL, TRAIN, SplitPlan
from data_prep.sharding.spool import facts_of
from data_prep.sharding.write import Made, fingerprint_of
from data_prep.shards.folder import SCHEMA_VERSION, ShardFolder
from data_prep.shards.shared_keys import FILES as SHARING_FILES
from data_prep.shards.shared_keys import by_source, write

CODES = {"train": TRAIN, "eval": EVAL}
SIDES = (("query", "queries"), ("passage", "passages"))


class LeftOut(NamedTuple):
    """Rows that no split holds, as the manifest counts them."""

    duplicates: int
    near_duplicates: dict[str, Any] | None
    excluded: dict[str, Any] | None
    leaking: int


def _sources(plan: SplitPlan, splits: Any, names: list[str]) -> tuple[dict[str, dict[str, int]], Any]:
    """Rows by source and split, sources sorted; and the source of each train row, its place among those of train."""
    import numpy as np

    sources = sorted({source for part in plan.parts for source in part.sources})
    place = {source: i for i, source in enumerate(sources)}
    counts = np.zeros((len(names), len(sources)), np.int64)
    train, start = [], 0
    for part in plan.parts:
        with facts_of(plan.folder, part.number) as facts:
            source_of = np.array([place[name] for name in part.sources], np.int32)[facts["source"]]
        own = splits[start : start + part.rows]
        for number, split in enumerate(names):
            counts[number] += np.bincount(source_of[own == CODES[split]], minlength=len(sources))
        train.append(source_of[own == TRAIN])
        start += part.rows
    of_train = [number for number, count in enumerate(counts[names.index("train")]) if count]
    renumber = np.zeros(len(sources), np.int64)
    renumber[of_train] = np.arange(len(of_train))
    held = {name: dict(zip(names, of.tolist())) for name, of in zip(sources, counts.T) if of.any()}
    return held, renumber[np.concatenate(train)]


def _write_sharing(
    build: Path, plan: SplitPlan, splits: Any, sources: dict[str, dict[str, int]], source_of: Any
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Which train rows are of which source and which share keys; returns each source's shared keys, and the files."""
    names = [name for name, of in sources.items() if of["train"]]
    made = by_source(names, source_of, *plan.train_pairs(splits))
    write(build, made)
    for name in SHARING_FILES:
        with open(build / name, "rb") as handle:
            os.fsync(handle.fileno())
    return {source.name: len(source.shared) for source in made}, [_entry(build / name, build) for name in SHARING_FILES]


def _entry(file: Path, root: Path) -> dict[str, Any]:
    return {"path": file.relative_to(root).as_posix(), "bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _manifest(
    made: Made,
    counts: dict[str, int],
    sources: dict[str, dict[str, int]],
    split: dict[str, Any],
    left_out: LeftOut,
    shared_keys: dict[str, int],
    sharing_files: list[dict[str, Any]],
) -> dict[str, Any]:
    files = [*made.files, *sharing_files]
    return {
        "schema_version": SCHEMA_VERSION,
        "rows": counts,
        "files": sorted([*files, *made.token_files], key=lambda entry: entry["path"]),
        "sources": sources,
        "shared_keys": shared_keys,
        "split": split | {"dropped": left_out.leaking},
        "duplicates_removed": left_out.duplicates,
        "near_duplicates": left_out.near_duplicates,
        "excluded": left_out.excluded,
        "scored_rows": made.scored,
        "tokenizer": made.tokens,
        "lengths": made.lengths.summary(histogram=True),
        "fingerprint": fingerprint_of(files),
    }


def _findings(shards: ShardFolder) -> dict[str, Any]:
    """What the gate of a training run would otherwise look for before the first step."""
    return {"version": gate.VERSION, "found": [one.to_json() for one in gate.of_rows(shards)]}


def _summary(output: Path, manifest: dict[str, Any]) -> None:
    rule = manifest["split"]
    if manifest["scored_rows"]:
        result(f"{output}: {manifest['scored_rows']:,} rows carry a score: train them with loss.name cosent or cosine")
    rows = ", ".join(f"{name} {count:,}" for name, count in manifest["rows"].items())
    result(f"{output}: {rows} rows; exact duplicates removed: {manifest['duplicates_removed']:,}")
    if near := manifest["near_duplicates"]:
        maybe = f"; {near['unsure']:,} rows had too many candidates to be sure of" if near["unsure"] else ""
        result(f"{output}: near duplicates removed (similarity {near['similarity']:g}): {near['removed']:,}{maybe}")
    if excluded := manifest["excluded"]:
        for name, of in excluded["rows"].items():
            counts = ", ".join(f"{count:,} hold a {kind} of it" for kind, count in of.items())
            result(f"{output}: train rows left out for {name}: {counts}")
        held = sum(sum(of.values()) for of in excluded["rows"].values())
        maybe = f"; {excluded['unsure']:,} rows had too many candidates to be sure of" if excluded["unsure"] else ""
        result(f"{output}: train rows left out by --exclude: {held:,}{maybe}")
    if made := manifest["tokenizer"]:
        cut = ", ".join(f"{made[f'cut_{many}']:,} {many} at {made[f'{one}_max_len']}" for one, many in SIDES)
        result(f"{output}: tokenised: {made['texts']:,} texts, {made['tokens']:,} tokens; cut: {cut}")
    if rule["dropped"]:
        result(f"{output}: {rule['dropped']:,} rows dropped by --on-leakage {rule['on_leakage']}")
    if rule["large_group_kept_in_train"]:
        result(
            f"{output}: {rule['large_group_kept_in_train']:,} rows that share texts or documents were drawn for eval, "
            "but are more than half of all rows, so they stay in train; --split-by FIELD splits them"
        )
    for one in manifest["findings"]["found"]:
        result(f"{output}: warning: {checks.Finding.of_json(one).line()}")
