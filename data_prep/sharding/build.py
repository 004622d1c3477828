"""shard: inputs to a folder of Arrow files, split by document; the manifest is written last.

- Every input is read once into a spool (spool.py), by several processes.
- The keys in the spool alone decide which rows are kept and in which split (split.py).
- The spool's rows are written and tokenised in their order (write.py, tokenise.py), by several processes.
- The folder is built under a temporary name and moved in place (manifest.py lists its content).
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.cluster.open import open_workers, problems_of
from data_prep.common.console import say, track
from data_prep.common.errors import BadInput, Failed, collect
from data_prep.common.files import check, fsync_folder, unfinished_name
from data_prep.common.paths import expanded
from data_prep.common.sole_writer import sole_writer
from data_prep.common.workers import Workers, free_memory, result_of
from data_prep.reading.files import Span
from data_prep.reading.formats import Notes, source_names
from data_prep.reading.opening import bytes_of
from data_prep.reading.row_problems import Problems
from data_prep.remote.location import Location
from data_prep.sharding import tokenise
from data_prep.sharding.exclusions import Exclusions, write_held
from data_prep.sharding.manifest import CODES, LeftOut, print_summary, write_manifest
from data_prep.sharding.split import EVAL, TRAIN, Leaks, SplitPlan, memory_for
from data_prep.sharding.spool import SPAN_BYTES, Part, ReadTask, arrow_files, choose, read_part, read_tasks
from data_prep.sharding.write import write_splits
from data_prep.shards.folder import MANIFEST, SPOOL, Rows
from data_prep.shards.target import names_in, overlaps, problem_of
from data_prep.texts.near_duplicates import check_similarity

SAID_FROM = 1_000_000  # rows
ESTIMATED_FROM = 16  # parts, and again whenever they are twice as many
ON_LEAKAGE = ("refuse", "drop-train", "drop-eval")


def shard(
    inputs: list[Path | Location],
    output: Path,
    *,
    num_shards: int | None = None,
    eval_fraction: float = 0.1,
    split_by: str | None = None,
    seed: int = 0,
    positive: str | None = None,
    columns: dict[str, str] | None = None,
    on_leakage: str = "refuse",
    near_duplicates: float | None = None,
    exclude: list[Path] | tuple = (),
    tokens: tokenise.TokenOptions | None = None,
    workers: int = 1,
    on: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes all rows of the inputs to the folder `output` and returns the manifest.

    num_shards: Arrow files of the train split (default: about 500 MB each). eval_fraction: expected share of groups in
    eval; 0 writes no eval split. split_by: a metadata field whose values are the groups (default: rows that share a
    document, positive or query text). on_leakage: the answer to a text in both splits, which only split_by can cause.
    columns: see read_records. near_duplicates: Jaccard similarity from which the later of two rows is left out
    (default: none is). exclude: evaluation sets whose texts, or with near_duplicates near duplicates of them, no train
    row may hold. tokens: the tokenizer of the train rows (default: none). workers: most processes; 1: this one only.
    on: a Ray cluster in their place, see cluster/ray_workers.py; every node sees the inputs and the output's folder.

    Rows wait on disk beside the output; split.py states the memory. BadInput lists every problem. Failed: another
    process writes there.
    """
    assert on_leakage in ON_LEAKAGE
    problems = problems_of(workers, on) + _bad_options(output, num_shards, eval_fraction, overwrite)
    problems += overlaps(inputs, output, [*exclude, *_folder_of(tokens)])
    if near_duplicates is not None:
        problems += check_similarity(near_duplicates, "--near-duplicates")
    check(problems + tokenise.check_options(tokens))
    if on:  # a node has another working folder
        inputs = [path.absolute() for path in inputs]
    # where the output is a link, it stays one: the folder that it names is replaced
    place = output.resolve() if output.is_symlink() else output.absolute()
    names, source = source_names(inputs), _tokenizer(tokens)
    with _building(place) as build:
        spool = build / SPOOL
        with open_workers(min(workers, _useful_workers(inputs)), on, inputs, place) as pool:
            tokenizer = pool.aside(tokenise.load, source) if source else None
            exclusions = Exclusions(near_duplicates, write_held(exclude, near_duplicates, spool))
            tasks = read_tasks(names, spool, positive, split_by, exclusions, columns)
            parts = _read(pool, tasks, names, columns, near_duplicates, tokenizer)
            check(tokenise.unknown_sources(tokens, parts))
            check_memory(sum(part.rows for part in parts), near_duplicates)
            plan = SplitPlan(spool, parts, bool(split_by), eval_fraction, seed)
            splits, left_out = _decide(plan, exclusions, on_leakage)
            counts = _checked_counts(plan, splits, num_shards)
            rows_of = choose(spool, parts, splits, {name: CODES[name] for name in counts})
            written = write_splits(pool, build, parts, rows_of, num_shards, result_of(tokenizer) if tokenizer else None)
        rule = {"by": f"metadata.{split_by}" if split_by else "documents", "fraction": eval_fraction, "seed": seed}
        rule |= {"large_group_kept_in_train": plan.kept_in_train, "on_leakage": on_leakage}
        manifest = write_manifest(build, plan, splits, counts, written, rule, left_out)
        _put_in_place(build, place, overwrite)
    print_summary(output, manifest)
    return manifest


def _bad_options(output: Path, num_shards: int | None, fraction: float, overwrite: bool) -> list[str]:
    problems = []
    if num_shards is not None and num_shards < 1:
        problems.append(f"--num-shards {num_shards}: must be 1 or more")
    if not 0 <= fraction < 1:
        problems.append(f"--eval-fraction {fraction:g}: must be in 0..1, below 1")
    blocked = next((folder for folder in (output, *output.parents) if folder.exists() and not folder.is_dir()), None)
    if blocked:
        problems.append(f"--output {output}: {blocked} is a file, not a folder")
    elif output.is_dir():
        names = names_in(output)
        if problem := problem_of(output, names, overwrite):
            problems.append(f"--output {output}: {problem}")
        elif names and MANIFEST not in names:
            say(f"{output} is unfinished (no {MANIFEST}) and will be replaced")
    return problems


@contextmanager
def _building(output: Path) -> Iterator[Path]:
    """Yields an empty folder beside the output, in which only this process works. It is removed unless it is moved."""
    build = unfinished_name(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A file beside it, as not every file system locks folders.
    with sole_writer(build.with_name(f"{build.name}.lock"), output):
        if build.exists():
            say(f"removing what an interrupted run left: {build}")
            shutil.rmtree(build)
        (build / SPOOL).mkdir(parents=True)
        try:
            yield build
        finally:
            shutil.rmtree(build, ignore_errors=True)


def _folder_of(tokens: tokenise.TokenOptions | None) -> list[Path]:
    """Returns the folder of --tokenizer; nothing for a hub id."""
    return [folder] if tokens and (folder := Path(expanded(tokens.model))).is_dir() else []


def _tokenizer(tokens: tokenise.TokenOptions | None) -> tokenise.Source | None:
    if tokens is None:
        return None
    source = tokenise.find(tokens)
    for note in source.notes:
        say(f"note: --tokenizer: {note}")
    return source


def _useful_workers(inputs: list[Path | Location]) -> int:
    """Returns one worker per task of SPAN_BYTES: starting more takes longer than their work."""
    return max(1, -(-sum(map(bytes_of, inputs)) // SPAN_BYTES))


def check_memory(rows: int, similarity: float | None, estimated: bool = False) -> None:
    """Says what the decision on all rows needs, for a million rows or more. Raises Failed where it does not fit.

    estimated: some rows are not yet counted; half of the need must fit then, and nothing is printed.
    """
    need, free = memory_for(rows, similarity), free_memory()
    takes = f"takes {'about' if similarity is None else 'up to'} {need / 1e9:.1f} GB of memory"
    size = f"{rows:,} rows are decided on in this process, which {takes}"
    if need / (2 if estimated else 1) > free:
        mend = "shard fewer rows at a time, or on a machine with more memory"
        raise Failed(f"{'about ' if estimated else ''}{size}; {free / 1e9:.1f} GB are free here; {mend}")
    if rows >= SAID_FROM and not estimated:
        say(f"{size}; {free / 1e9:.1f} GB are free here")


def _read(
    pool: Workers,
    tasks: Iterable[ReadTask],
    names: dict[Path | Location, str],
    columns: dict[str, str] | None,
    similarity: float | None,
    tokenizer: Future | None,
) -> list[Part]:
    """Reads every input once; notes and problems are reported in the order of the rows. similarity: as in `shard`.

    tokenizer: loaded meanwhile. Its problems end the reading, or are listed with those of the rows at its end.
    """
    parts, problems = [], Problems()
    label = f"reading {next(iter(names)).name if len(names) == 1 else f'{len(names)} inputs'}"
    done = track(pool.map(read_part, tasks), label, size=lambda part: part.rows, note=pool.note)
    for path, input_parts in groupby(done, lambda part: part.path):
        notes, rows = Notes(), 0
        for part in input_parts:
            if tokenizer and tokenizer.done():
                result_of(tokenizer)
            parts.append(part)
            rows += part.rows
            if len(parts) >= ESTIMATED_FROM and len(parts).bit_count() == 1:
                expected = sum(one.rows for one in parts) + _rows_behind(part.span, rows)
                check_memory(expected, similarity, estimated=True)
            notes.merge(part.notes)
            problems.merge(part.problems)
            part.problems = Problems()  # not kept for every part
        notes.close(path, problems, columns)
    found: list[str] = []
    if tokenizer:
        collect(found, result_of, tokenizer)
    collect(found, problems.check)
    check(found)
    return parts


def _rows_behind(span: Span | None, rows: int) -> int:
    """Estimates the rows of an input behind this span from those up to its end; an input that is not cut has none."""
    return rows * (span.end - span.stop) // span.stop if span else 0


def _decide(plan: SplitPlan, exclusions: Exclusions, on_leakage: str) -> tuple[Any, LeftOut]:
    """Decides on all rows: returns the split of each, (rows,) uint8, and the counts of those left out."""
    near = excluded = None
    if exclusions.similarity is not None:
        removed, unsure = plan.leave_out_near(exclusions.similarity)
        near = {"similarity": exclusions.similarity, "removed": removed, "unsure": unsure}
    splits = plan.assign()
    if exclusions.held:
        excluded = {"rows": plan.leave_out_held(splits), "unsure": sum(part.unsure for part in plan.parts)}
    leaks, leaking = plan.leaks(splits), 0
    if len(leaks.keys) and on_leakage == "refuse":
        raise BadInput(_describe_leaks(leaks, Rows(arrow_files(plan.folder, plan.parts))))
    if len(leaks.keys):
        leaking = plan.drop(splits, leaks, TRAIN if on_leakage == "drop-train" else EVAL)
    return splits, LeftOut(plan.duplicates, near, excluded, leaking)


def _describe_leaks(leaks: Leaks, rows: Rows, shown: int = 3) -> list[str]:
    texts, train_rows = len(leaks.keys), len(set(leaks.train_rows.tolist()))
    lines = [f"leakage: {texts:,} texts or documents of eval are in train too (at least {train_rows:,} train rows)"]
    for pair in zip(leaks.train_rows[:shown].tolist(), leaks.eval_rows[:shown].tolist()):
        train, other = rows.take(pair)
        lines.append(f"train row {train.id} and eval row {other.id} share a text; eval query: {other.query[:80]!r}")
    lines.append("add --on-leakage drop-train or drop-eval to leave those rows out, or split without --split-by")
    return lines


def _checked_counts(plan: SplitPlan, splits: Any, num_shards: int | None) -> dict[str, int]:
    """Counts the rows of each split. Raises BadInput for a split without rows."""
    counts = {name: int((splits == code).sum()) for name, code in CODES.items() if name == "train" or plan.fraction}
    problems = []
    if not counts["train"]:
        problems.append("no row is left for the train split: change --eval-fraction or --seed, or give more documents")
    if counts.get("eval") == 0:
        problems.append(f"no row is left for the eval split: {_why_no_eval(plan)}")
    if not problems and num_shards and num_shards > counts["train"]:
        problems.append(f"--num-shards {num_shards}: more than the {counts['train']} rows of train")
    check(problems)
    return counts


def _why_no_eval(plan: SplitPlan) -> str:
    """Explains an eval split without rows, and names the mend that can help."""
    rows, largest = int(plan.kept.sum()), plan.largest_group
    if rows < 2:
        return f"{rows:,} rows are left without duplicates; give more rows, or --eval-fraction 0"
    if plan.by_field and plan.groups == 1:
        return f"all {rows:,} rows have the same value of --split-by; name another field, or --eval-fraction 0"
    mend = "change --eval-fraction or --seed, or give more documents"
    if plan.by_field or 2 * largest <= rows:
        return f"its {rows:,} rows form {plan.groups:,} groups, each for one split; {mend}"
    shared, example = plan.most_shared(), ""
    if len(shared):
        first, second = Rows(arrow_files(plan.folder, plan.parts)).take(shared[:2].tolist())
        example = f" (one of them is in {len(shared):,} rows, such as {first.id} and {second.id})"
    facts = f"{largest:,} of {rows:,} rows share texts or documents, directly or through other rows{example}"
    mends = "remove what they share, split by a metadata field with --split-by FIELD, or --eval-fraction 0"
    others = "" if plan.groups == 1 else f"; another --seed can draw from {rows - largest:,} other rows"
    return f"{facts}, so they stay in train; {mends}{others}"


def _put_in_place(build: Path, output: Path, overwrite: bool) -> None:
    """Moves the build to `output`; an old folder is moved aside first and deleted last."""
    if output.is_dir() and (problem := problem_of(output, names_in(output), overwrite)):
        raise Failed(f"--output {output}: was changed while this run worked: it {problem}")
    old = output.with_name(f".{output.name}.replaced")
    if old.is_symlink():
        old.unlink()
    elif old.exists():
        shutil.rmtree(old)
    if output.exists():
        os.rename(output, old)
    os.rename(build, output)
    fsync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)
