"""The report on an input or a shard folder: counts, lengths, languages, and findings (checks.py)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cluster.open import open_workers, problems_of
from data_prep.common.console import result, say
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.common.workers import Workers
from data_prep.quality import checks
from data_prep.quality.checks import Finding, Take
from data_prep.quality.decontaminate import HeldOut, held_out
from data_prep.quality.gate import nearly
from data_prep.quality.rows import Facts, read_rows, useful_workers
from data_prep.quality.sampling import spread
from data_prep.reading.row_problems import problem_lines
from data_prep.remote.location import Location
from data_prep.texts.languages import UNSURE
from data_prep.texts.near_duplicates import SIMILARITY
from data_prep.texts.token_lengths import Reader, reader_of, token_lengths

SAMPLE = 20_000  # rows for languages, prompts, tokens and near leakage
NO_LANGUAGE = {UNSURE: "unsure", checks.NOT_A_LANGUAGE: "no language"}  # code -> word of the terminal's table
NEAR_ROWS = 200_000  # rows that are compared for near duplicates

COUNTS = {
    "exact_duplicates": "rows with the query and positives of an earlier row",
    "duplicate_queries": "rows with the query of an earlier row",
    "shared_positives": "rows with a positive that an earlier row has",
    "positives_as_negatives": "rows with a negative that is a positive of their query",
    "query_equals_positive": "rows whose query is one of their positives",
}


def inspect(
    path: Path | Location,
    *,
    as_json: bool = False,
    html: Path | None = None,
    positive: str | None = None,
    columns: dict[str, str] | None = None,
    tokenizer: str | None = None,
    exclude: list[Path] | None = None,
    workers: int = 1,
    on: str | None = None,
) -> dict[str, Any]:
    """Reads every row of an input or shard folder, prints a table (or only JSON) on stdout, and returns the content.

    path, rows, splits {name: rows}, sources {name: rows}, lengths (see lengths.py), COUNTS {name: rows},
    near_duplicates, languages (see checks.py), tokens (see token_lengths.py; null without a tokenizer), sample {what:
    rows it was counted on}, findings [checks.Finding], problems {"count", "shown": [Kind.to_json]}.
    tokenizer: model folder or hub id; its tokenizer measures the texts. exclude: evaluation sets whose texts are
    leakage. html: file for the same content as a page. workers, on: who reads the rows, see cluster.open_workers; the
    report is the same. Bad rows are content; an unreadable input is BadInput.
    """
    problems = check_output_file(html, [path], suffix=".html", flag="--html") if html else []
    check(problems + problems_of(workers, on))
    reader = reader_of(tokenizer, "--tokenizer") if tokenizer else None
    excluded = {str(folder): held_out([folder]) for folder in exclude or []}
    path = path.absolute() if on else path  # a node has another working folder
    with open_workers(useful_workers(path, workers), on, [path]) as pool:
        rows, take = read_rows(path, positive, columns, pool)
        report = _report(path, rows, take, pool, reader, excluded)
    result(json.dumps(report, indent=2)) if as_json else _show(report)
    if html:
        from data_prep.quality.inspect_page import page

        with whole_file(html) as file:
            file.write(page(report))
        say(f"{html}: written")
    return report


def _report(
    path: Path | Location, rows: Facts, take: Take, pool: Workers, reader: Reader | None, excluded: dict[str, HeldOut]
) -> dict[str, Any]:
    keys, unreadable = rows.keys, rows.unreadable.count
    by_source = {name: np.frombuffer(numbers, np.int64) for name, numbers in rows.sources.items()}
    numbers = {name: some.tolist() for name, some in spread(by_source, SAMPLE).items()}
    sample = {name: take(some) for name, some in numbers.items()}
    records = [record for some in sample.values() for record in some]
    train_records = [
        record for name, some in numbers.items() for n, record in zip(some, sample[name]) if n < rows.train
    ]
    different = np.setdiff1d(np.arange(len(keys)), keys.duplicates())
    chosen = spread({"": different}, NEAR_ROWS)[""].tolist()
    near, near_table = checks.near_duplicates(take, chosen, SIMILARITY, pool)
    languages, language_table = checks.languages(sample, pool)
    tokens, measured = token_lengths(reader, records) if reader else (None, 0)
    sources = {name: len(numbers) for name, numbers in by_source.items()}
    estimated = []
    for name, texts in excluded.items():
        mend = checks.leave_out(name, SIMILARITY)
        estimated += checks.near_leakage(train_records, nearly(texts), name, "--exclude", mend)
    estimated += [*languages, *checks.markup(sample), *checks.prompts(sample, reader)]
    findings = [
        *checks.unreadable(rows.empty, unreadable - rows.empty, len(keys) + unreadable),
        *_leakage(path, rows, excluded),
        *checks.texts_of_rows(keys),
        *checks.duplicates(keys),
        *checks.of_sample(near, len(chosen), len(different)),
        *checks.of_sample(estimated, len(records), len(keys)),
        *(checks.of_sample(checks.truncation(tokens), measured, len(keys)) if tokens else []),
        *checks.imbalance(sources, ""),
    ]
    return {
        "path": str(path),
        "rows": len(keys),
        "splits": {name: count for name, count in rows.splits.items() if name},
        "sources": dict(sorted(sources.items(), key=lambda one: -one[1])),
        "lengths": rows.lengths.summary(),
        "exact_duplicates": len(keys.duplicates()),
        "duplicate_queries": len(keys.repeated_queries()),
        "shared_positives": len(keys.shared_positives()),
        "positives_as_negatives": len(keys.positives_as_negatives()),
        "query_equals_positive": len(keys.equal_texts()),
        "near_duplicates": near_table,
        "languages": language_table,
        "tokens": tokens,
        "sample": {"languages": len(records), "near_duplicates": len(chosen), "tokens": measured},
        "findings": [one.to_json() | {"line": one.line()} for one in checks.sorted_findings(findings)],
        "problems": {
            "count": unreadable,
            "shown": [kind.to_json() for kind in rows.unreadable.shown()],
        },
    }


def _leakage(path: Path | Location, rows: Facts, excluded: dict[str, HeldOut]) -> list[Finding]:
    """Checks leakage from the folder's own eval split and from the named sets."""
    findings = []
    if rows.splits["eval"]:
        own = rows.keys.texts(rows.train)
        findings += checks.leakage(rows.keys, rows.train, own, f"{path}/eval", "", "run shard again")
    for name, texts in excluded.items():
        numbers = np.fromiter(texts.keys, np.int64)
        findings += checks.leakage(rows.keys, rows.train, numbers, name, "--exclude", checks.leave_out(name))
    return findings


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    parts = ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())
    console.print(f"{escape(report['path'])}: {report['rows']:,} rows" + (f" ({parts})" if parts else ""))
    for table in _tables(report):
        console.print(table)
    for name, meaning in COUNTS.items():
        console.print(f"{report[name]:>10,}  {meaning}")
    near = report["near_duplicates"]
    console.print(f"{near['rows']:>10,}  near duplicates (Jaccard {near['similarity']:g}) among {near['of']:,} rows")
    problems = report["problems"]
    console.print(f"{problems['count']:>10,}  rows that cannot be read as records")
    for line in problem_lines(problems):
        console.print(escape(f"  {line}"))
    for one in report["findings"]:
        style = "red" if one["severity"] == "error" else "yellow"
        console.print(f"[{style}]{one['severity']}[/{style}] {escape(one['line'])}")
    if not report["findings"]:
        console.print("nothing was found to be wrong")


def _tables(report: dict[str, Any]):
    from rich.markup import escape
    from rich.table import Table

    sources = Table("source", "rows", "languages of queries", "of positives")
    for name, count in report["sources"].items():
        of = report["languages"][name]
        sources.add_row(escape(name), f"{count:,}", *(_mix(of[side]) for side in ("query", "positive")))
    yield sources
    lengths = Table("texts", "number", "unit", "p50", "p90", "p99", "max", "cut")
    for name, stats in report["lengths"].items():
        for unit in ("characters", "words"):
            values = [f"{stats[unit][value]:,}" for value in ("p50", "p90", "p99", "max")]
            lengths.add_row(name, f"{stats['texts']:,}", unit, *values, "")
    for name, stats in (report["tokens"] or {}).items():
        values = [f"{stats[value]:,}" for value in ("p50", "p90", "p99", "max")]
        cut = f"{stats['cut']:,} at {stats['limit']:,}"
        lengths.add_row(name, f"{stats['texts']:,}", "tokens", *values, cut)
    yield lengths


def _mix(counts: dict[str, int], most: int = 4) -> str:
    """Formats shares: `en 95 %, fr 4 %, unsure 1 %`."""
    total = sum(counts.values())
    shown = [
        f"{NO_LANGUAGE.get(name, name)} {100 * count / total:.0f} %" for name, count in list(counts.items())[:most]
    ]
    return ", ".join(shown) + (" …" if len(counts) > most else "")
