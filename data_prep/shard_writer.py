"""Writing shard folders: records to Arrow files split by document, the manifest last.

Two passes, each shared among processes: every input is read once into a spool (spool.py); its keys alone decide which
rows are kept and where they go (splits.py); then the spool's rows are written, and tokenised, in their order.

manifest.json: schema_version; rows {split: n}; files [{path, bytes, sha256, rows?}]; sources {name: {split: n}};
shared_keys {source: n} (see sharing.py); split {by, fraction, seed, groups larger than half kept in train, on_leakage,
dropped}; duplicates_removed; near_duplicates {similarity, removed, unsure} and excluded {rows {set: {"query" or
"document": n}}, unsure}, null where not asked for; tokenizer (null: texts are not tokenised; see tokens.py); lengths
(see lengths.py); findings {version, found} (see gate.of_rows); fingerprint (sha256 over the sorted paths and hashes of
the files but for the tokens, which follow from the rows). No time, version of a package or number of workers stands in
it: the same input and seed give the same bytes.
"""

import os
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import checks, gate, tokenise
from data_prep.collect import Problems
from data_prep.formats import Notes, source_names
from data_prep.left_out import Asked, write_held
from data_prep.near_duplicates import check_similarity
from data_prep.output import check, fsync_folder, same_path, unfinished_name
from data_prep.problems import BadInput
from data_prep.progress import result, say, track
from data_prep.shard_files import Made, fingerprint_of, write_json, write_splits
from data_prep.shards import MANIFEST, SCHEMA_VERSION, SPOOL, Rows, ShardFolder, looks_unfinished, sha256_of
from data_prep.sharing import FILES as SHARING_FILES
from data_prep.sharing import by_source, write
from data_prep.splits import EVAL, TRAIN, Leaks, SplitPlan
from data_prep.spool import SPAN_BYTES, Part, ReadTask, arrow_files, choose, facts_of, read_part, read_tasks
from data_prep.workers import Workers

CODES = {"train": TRAIN, "eval": EVAL}
SIDES = (("query", "queries"), ("passage", "passages"))
ON_LEAKAGE = ("refuse", "drop-train", "drop-eval")


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
    near_duplicates: float | None = None,
    exclude: list[Path] | tuple = (),
    tokens: tokenise.TokenOptions | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes all rows of the inputs to the folder `output` and returns the manifest.

    num_shards: Arrow files of the train split (default: about 500 MB each). eval_fraction: expected share of groups in
    eval; 0 writes no eval split. split_by: a metadata field whose values are the groups (default: rows that share a
    document, positive or query text). on_leakage: what happens to a text in both splits, possible with split_by only.
    near_duplicates: Jaccard similarity from which a row is left out for an earlier one's sake (default: none is).
    exclude: evaluation sets whose texts no train row may hold, nor nearly so with near_duplicates.
    tokens: how the train rows are tokenised (default: not at all). workers: processes at most; with 1 all is done in
    this one. Rows wait on disk beside the output; what memory holds of them is said in splits.py. BadInput: everything
    wrong, listed.
    """
    assert on_leakage in ON_LEAKAGE
    found = _bad_options(inputs, output, num_shards, eval_fraction, workers, overwrite)
    if near_duplicates is not None:
        found += check_similarity(near_duplicates, "--near-duplicates")
    check(found + tokenise.check_options(tokens))
    names, source = source_names(inputs), _tokenizer(tokens)
    build = unfinished_name(output)
    if build.exists():
        say(f"removing what an interrupted run left: {build}")
        shutil.rmtree(build)
    spool = build / SPOOL
    spool.mkdir(parents=True)
    try:
        with Workers(min(workers, _useful_workers(inputs))) as pool:
            tokenizer = pool.aside(tokenise.load, source) if source else None
            asked = Asked(near_duplicates, write_held(exclude, near_duplicates, spool))
            parts = _read(pool, read_tasks(names, spool, positive, split_by, asked), names)
            plan = SplitPlan(spool, parts, bool(split_by), eval_fraction, seed)
            splits, left_out = _decide(plan, asked, on_leakage)
            counts = _checked_counts(plan, splits, num_shards)
            held = choose(spool, parts, splits, {name: CODES[name] for name in counts})
            made = write_splits(pool, build, parts, held, num_shards, tokenizer() if tokenizer else None)
        sources, source_of = _sources(plan, splits, list(counts))
        shared_keys, sharing_files = _write_sharing(build, plan, splits, sources, source_of)
        shutil.rmtree(spool)
        split = {"by": f"metadata.{split_by}" if split_by else "documents", "fraction": eval_fraction, "seed": seed}
        split |= {"large_group_kept_in_train": plan.kept_in_train, "on_leakage": on_leakage}
        manifest = _manifest(made, counts, sources, split, left_out, shared_keys, sharing_files)
        manifest["findings"] = _findings(ShardFolder(build, manifest))
        write_json(build / MANIFEST, manifest, build)
        fsync_folder(build)
        _put_in_place(build, output)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    _summary(output, manifest)
    return manifest


def _bad_options(
    inputs: list[Path], output: Path, num_shards: int | None, fraction: float, workers: int, overwrite: bool
) -> list[str]:
    found = []
    if workers < 1:
        found.append(f"--workers {workers}: must be 1 or more")
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


def _tokenizer(tokens: tokenise.TokenOptions | None) -> tokenise.Source | None:
    if tokens is None:
        return None
    source = tokenise.find(tokens)
    for note in source.rules.notes:
        say(f"note: --tokenizer: {note}")
    return source


def _useful_workers(inputs: list[Path]) -> int:
    """More would wait: starting one takes longer than what a task of this size does."""
    files = [file for path in inputs for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return max(1, -(-sum(file.stat().st_size for file in files) // SPAN_BYTES))


def _read(pool: Workers, tasks: Iterable[ReadTask], names: dict[Path, str]) -> list[Part]:
    """Reads every input once. What is said of an input, and every problem, comes in the order of the rows."""
    parts, problems = [], Problems()
    label = f"reading {next(iter(names)).name if len(names) == 1 else f'{len(names)} inputs'}"
    for path, of_input in groupby(
        track(pool.map(read_part, tasks), label, size=lambda part: part.rows), lambda part: part.path
    ):
        notes = Notes()
        for part in of_input:
            parts.append(part)
            notes.merge(part.notes)
            problems.merge(part.problems)
        notes.close(path, problems)
    problems.check()
    return parts


class LeftOut(NamedTuple):
    """Rows that no split holds, as the manifest counts them."""

    duplicates: int
    near_duplicates: dict[str, Any] | None
    excluded: dict[str, Any] | None
    leaking: int


def _decide(plan: SplitPlan, asked: Asked, on_leakage: str) -> tuple[Any, LeftOut]:
    """The split of every row, (rows,) uint8, and what is left out of them."""
    near = excluded = None
    if asked.similarity is not None:
        removed, unsure = plan.leave_out_near(asked.similarity)
        near = {"similarity": asked.similarity, "removed": removed, "unsure": unsure}
    splits = plan.assign()
    if asked.held:
        excluded = {"rows": plan.leave_out_held(splits), "unsure": sum(part.unsure for part in plan.parts)}
    leaks, leaking = plan.leaks(splits), 0
    if len(leaks.keys) and on_leakage == "refuse":
        raise BadInput(_describe(leaks, Rows(arrow_files(plan.folder, plan.parts))))
    if len(leaks.keys):
        leaking = plan.drop(splits, leaks, TRAIN if on_leakage == "drop-train" else EVAL)
    return splits, LeftOut(plan.duplicates, near, excluded, leaking)


def _describe(leaks: Leaks, rows: Rows, shown: int = 3) -> list[str]:
    texts, train_rows = len(leaks.keys), len(set(leaks.train_rows.tolist()))
    lines = [f"leakage: {texts:,} texts or documents of eval are in train too (at least {train_rows:,} train rows)"]
    for pair in zip(leaks.train_rows[:shown].tolist(), leaks.eval_rows[:shown].tolist()):
        train, held = rows.take(pair)
        lines.append(f"train row {train.id} and eval row {held.id} share a text; eval query: {held.query[:80]!r}")
    lines.append("add --on-leakage drop-train or drop-eval to leave those rows out, or split without --split-by")
    return lines


def _checked_counts(plan: SplitPlan, splits: Any, num_shards: int | None) -> dict[str, int]:
    counts = {name: int((splits == code).sum()) for name, code in CODES.items() if name == "train" or plan.fraction}
    mend = "change --eval-fraction or --seed, or give more documents"
    found = [f"no row is left for the {split} split: {mend}" for split, rows in counts.items() if not rows]
    if not found and num_shards and num_shards > counts["train"]:
        found.append(f"--num-shards {num_shards}: more than the {counts['train']} rows of train")
    if found and plan.kept_in_train:
        share = f"{plan.kept_in_train:,} of {int(plan.kept.sum()):,} rows share texts or documents"
        found.append(f"{share}, so they stay in one split; --split-by FIELD splits them by a metadata field")
    check(found)
    return counts


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
