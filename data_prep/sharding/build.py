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
from typing import Any

from data_prep.common.console import say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import check, fsync_folder, same_path, unfinished_name
from data_prep.common.workers import Workers
from data_prep.reading.formats import Notes, source_names
from data_prep.reading.row_problems import Problems
from data_prep.sharding import tokenise
from data_prep.sharding.exclusions import Asked, write_held
from data_prep.sharding.manifest import CODES, LeftOut, _findings, _manifest, _sources, _summary, _write_sharing
from data_prep.sharding.split import EVAL, TRAIN, Leaks, SplitPlan
from data_prep.sharding.spool import SPAN_BYTES, Part, ReadTask, arrow_files, choose, read_part, read_tasks
from data_prep.sharding.write import write_json, write_splits
from data_prep.shards.folder import MANIFEST, SPOOL, Rows, ShardFolder, looks_unfinished
from data_prep.texts.near_duplicates import check_similarity

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
