"""Mixing: all inputs to one JSONL of records."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from data_prep.common.console import result, say, track
from data_prep.common.files import check, check_output_file, rejected_name, spool_beside, whole_file
from data_prep.composing.balance import Balance
from data_prep.mining.miner import add_hard_negatives
from data_prep.reading.formats import read_records, source_names
from data_prep.reading.row_problems import Problems
from data_prep.records import Record


def compose(
    inputs: list[Path],
    output: Path,
    *,
    hard_k: int = 0,
    positive: str | None = None,
    columns: dict[str, str] | None = None,
    skip_bad: bool = False,
    balance: str | None = None,
    per_value: int | None = None,
    seed: int = 0,
) -> int:
    """Writes the records of all inputs, in order, to `output`; returns their number.

    hard_k: hard negatives per row; an input's rows are in memory then. balance: a metadata field; the seed draws at
    most per_value rows of each of its values (see Balance), and all rows wait on disk. skip_bad: bad rows go to
    "<output stem>.rejected.jsonl" (file, line, reason, raw).

    Raises BadInput with every bad row of every input, unless skip_bad; the output stays as it was.
    """
    mistakes = check_output_file(output, inputs)
    if hard_k < 0:
        mistakes.append(f"--hard-k {hard_k}: must be 0 or more")
    if per_value is not None and per_value < 1:
        mistakes.append(f"--per-value {per_value}: must be 1 or more")
    if per_value is not None and not balance:
        mistakes.append(f"--per-value {per_value}: belongs to --balance FIELD, which is not given")
    check(mistakes)
    names = source_names(inputs)
    even = Balance(balance, per_value, seed) if balance else None
    with ExitStack() as stack:
        rejects = stack.enter_context(whole_file(rejected_name(output))) if skip_bad else None
        problems = Problems(sink=(lambda problem: rejects.write(problem.to_json() + "\n")) if rejects else None)
        lines = stack.enter_context(whole_file(output))
        waiting = stack.enter_context(spool_beside(output)) if even else lines
        counts = {}
        for path in inputs:
            records = read_records(path, positive=positive, columns=columns, source=names[path], problems=problems)
            rows: Iterable[Record] = track(records, f"reading {path.name}")
            if hard_k:
                rows = list(rows)
                if not problems.count:
                    add_hard_negatives(rows, hard_k, str(path))
            counts[names[path]] = 0
            for record in rows:
                if even:
                    even.add(record, problems)
                waiting.write(record.to_json() + "\n")
                counts[names[path]] += 1
        total = sum(counts.values())
        if not total and not problems.count:
            problems.file(f"no valid row in {', '.join(map(str, inputs))}: {problems.skipped:,} were rejected")
        problems.check()
        if even:
            counts = _copy_kept(waiting, lines, even.kept(), counts)
            total = sum(counts.values())
            for line in even.summary():
                say(line)
    if skip_bad:
        say(f"{problems.skipped:,} bad rows skipped, with reasons in {rejected_name(output)}")
    each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    result(f"{output}: {total:,} records ({each})")
    return total


def _copy_kept(waiting: IO[str], lines: IO[str], kept: bytearray, counts: dict[str, int]) -> dict[str, int]:
    """Copies the kept ones of the waiting lines. counts: lines of each input, in order. Returns the kept counts."""
    waiting.seek(0)
    lines.writelines(line for line, stays in zip(waiting, kept, strict=True) if stays)
    kept_counts, start = {}, 0
    for name, count in counts.items():
        kept_counts[name] = kept.count(1, start, start + count)
        start += count
    return kept_counts
