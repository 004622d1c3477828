"""What is in an input or a shard folder: counts, lengths, duplicates, problems."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.collect import Problems
from data_prep.formats import read_records
from data_prep.lengths import Lengths
from data_prep.progress import result, track
from data_prep.records import Record, text_key
from data_prep.shards import MANIFEST, looks_unfinished, open_shards

# Defects that a look at the rows cannot show; each is a number of rows.
DEFECTS = {
    "exact_duplicates": "rows with the query and positives of an earlier row",
    "duplicate_queries": "rows with the query of an earlier row",
    "shared_positives": "rows with a positive that an earlier row has",
    "positives_as_own_negatives": "rows with a text that is both their positive and their negative",
    "query_equals_positive": "rows whose query is one of their positives",
}


def inspect(path: Path, *, as_json: bool = False, positive: str | None = None) -> dict[str, Any]:
    """Reads every row of an input or shard folder, prints a table (or only JSON) on stdout, and returns the content:
    path, rows, splits {name: rows}, sources {name: rows}, lengths (see lengths.py), DEFECTS {name: rows},
    problems {"count", "shown": [{file, line, reason}]}. Bad rows are content; an unreadable
    input is BadInput."""
    problems = Problems()
    splits, found = Counter(), _Survey()
    for split, record in track(_rows(path, positive, problems), f"reading {path.name}"):
        splits[split] += 1
        found.add(record)
    if problems.files:
        problems.check()
    report = {
        "path": str(path),
        "rows": sum(splits.values()),
        "splits": {name: count for name, count in splits.items() if name},
        "sources": dict(found.sources.most_common()),
        "lengths": found.lengths.summary(),
        **found.defects,
        "problems": {
            "count": problems.count,
            "shown": [{"file": row.file, "line": row.line, "reason": row.reason} for row in problems.rows],
        },
    }
    result(json.dumps(report, ensure_ascii=False, indent=2)) if as_json else _show(report)
    return report


def _rows(path: Path, positive: str | None, problems: Problems) -> Iterator[tuple[str, Record]]:
    if path.is_dir() and ((path / MANIFEST).exists() or looks_unfinished(path)):
        folder = open_shards(path)
        for split in folder.splits:
            for record in folder.split(split):
                yield split, record
        return
    for record in read_records(path, positive=positive, problems=problems):
        yield "", record


class _Survey:
    """Counts over all rows; keeps 64-bit keys of texts, not the texts."""

    def __init__(self):
        self.sources: Counter[str] = Counter()
        self.lengths = Lengths()
        self.defects = dict.fromkeys(DEFECTS, 0)
        self.rows: set[tuple[int, ...]] = set()
        self.queries: set[int] = set()
        self.positives: set[int] = set()

    def add(self, record: Record) -> None:
        self.sources[record.source] += 1
        self.lengths.add(record)
        query = text_key(record.query)
        positives = {text_key(text) for text in record.positives}
        row = (query, *sorted(positives))
        self.defects["exact_duplicates"] += row in self.rows
        self.defects["duplicate_queries"] += query in self.queries
        self.defects["shared_positives"] += not positives.isdisjoint(self.positives)
        self.defects["positives_as_own_negatives"] += any(text_key(text) in positives for text in record.negatives)
        self.defects["query_equals_positive"] += query in positives
        self.rows.add(row)
        self.queries.add(query)
        self.positives |= positives


def _show(report: dict[str, Any]) -> None:
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    parts = ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())
    console.print(f"{escape(report['path'])}: {report['rows']:,} rows" + (f" ({parts})" if parts else ""))
    sources = Table("source", "rows")
    for name, count in report["sources"].items():
        sources.add_row(escape(name), f"{count:,}")
    console.print(sources)
    lengths = Table("texts", "number", "unit", "p50", "p90", "p99", "max")
    for field, stats in report["lengths"].items():
        for unit in ("characters", "words"):
            values = [f"{stats[unit][name]:,}" for name in ("p50", "p90", "p99", "max")]
            lengths.add_row(field, f"{stats['texts']:,}", unit, *values)
    console.print(lengths)
    for name, meaning in DEFECTS.items():
        console.print(f"{report[name]:>10,}  {meaning}")
    problems = report["problems"]
    console.print(f"{problems['count']:>10,}  rows that cannot be read as records")
    for row in problems["shown"]:
        console.print(escape(f"  {row['file']}:{row['line']}: {row['reason']}"))
    if problems["count"] > len(problems["shown"]):
        console.print(f"  … and {problems['count'] - len(problems['shown']):,} more")
