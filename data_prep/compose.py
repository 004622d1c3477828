"""All inputs to one JSONL of records."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from data_prep.collect import Problem, Problems
from data_prep.formats import read_records, source_names
from data_prep.negatives import add_hard_negatives
from data_prep.output import check, check_output_file, rejected_name, whole_file
from data_prep.progress import result, say, track
from data_prep.records import Record


def compose(
    inputs: list[Path], output: Path, *, hard_k: int = 0, positive: str | None = None, skip_bad: bool = False
) -> int:
    """Writes the records of all inputs, in order, to `output`; returns their number. hard_k: hard negatives per row.

    Every bad row of every input is listed in one BadInput and the output stays as it was. With skip_bad they go to
    "<output stem>.rejected.jsonl" (file, line, reason, raw) instead. With hard_k an input's rows are held in memory.
    """
    found = check_output_file(output, inputs)
    if hard_k < 0:
        found.append(f"--hard-k {hard_k}: must be 0 or more")
    check(found)
    names = source_names(inputs)
    with ExitStack() as stack:
        rejects = stack.enter_context(whole_file(rejected_name(output))) if skip_bad else None
        problems = Problems(sink=_line_writer(rejects) if rejects else None)
        lines = stack.enter_context(whole_file(output))
        counts = {}
        for path in inputs:
            rows: Iterable[Record] = track(
                read_records(path, positive=positive, source=names[path], problems=problems), f"reading {path.name}"
            )
            if hard_k:
                rows = list(rows)
                if not problems.count:
                    add_hard_negatives(rows, hard_k, str(path))
            counts[names[path]] = 0
            for record in rows:
                lines.write(record.to_json() + "\n")
                counts[names[path]] += 1
        total = sum(counts.values())
        if not total and not problems.count:
            problems.file(f"no valid row in {', '.join(map(str, inputs))}: {problems.skipped:,} were rejected")
        problems.check()
    if skip_bad:
        say(f"{problems.skipped:,} bad rows skipped, with reasons in {rejected_name(output)}")
    each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    result(f"{output}: {total:,} records ({each})")
    return total


def _line_writer(handle):
    def write(problem: Problem) -> None:
        handle.write(problem.to_json() + "\n")

    return write
