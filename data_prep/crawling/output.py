"""Output of a crawl: the terms as CSV or as pairs, the skipped items, and the summary."""

import csv
import json
from collections import Counter
from pathlib import Path

from data_prep.common.console import result, say
from data_prep.common.errors import Failed
from data_prep.common.files import rejected_name, whole_file
from data_prep.reading.row_problems import Problem

COLUMNS = ("term", "definition", "url", "source")


def write(crawled: list, output: Path) -> None:
    """Writes the entries of all sources in order, and the items that were skipped on their pages to its rejected_name.

    crawled: list of crawl.Crawled. Without any entry, nothing is written.
    """
    rows = [(entry.term, entry.definition, entry.url, one.source.name) for one in crawled for entry in one.entries]
    if not rows:
        return
    with whole_file(output) as handle:
        if output.suffix == ".csv":
            table = csv.writer(handle, lineterminator="\n")
            table.writerows([COLUMNS, *rows])
        else:
            for term, definition, url, source in rows:
                pair = {"anchor": term, "positive": definition, "metadata": {"url": url, "source": source}}
                handle.write(json.dumps(pair, ensure_ascii=False) + "\n")
    skipped = [(page.url, item) for one in crawled for page in one.pages for item in page.skipped]
    with whole_file(rejected_name(output)) as handle:  # also where nothing was skipped, in place of an earlier crawl's
        for url, item in skipped:
            handle.write(Problem(url, item.line, item.reason, item.text).to_json() + "\n")


def report(crawled: list, output: Path) -> None:
    """Prints the summary. Raises Failed with every source that could not be fetched or has no term."""
    failures: list[str] = []
    for one in crawled:
        failures += one.failed
        if not one.entries and not one.failed:
            notes = "; ".join(note for page in one.pages for note in page.notes)
            failures.append(f"{one.source.name}: no term found ({notes})")
    entries = [entry for one in crawled for entry in one.entries]
    skipped = Counter(item.reason for one in crawled for page in one.pages for item in page.skipped)
    resolved, unresolved = sum(one.resolved for one in crawled), sum(one.unresolved for one in crawled)
    beyond = sum(one.beyond for one in crawled)
    if resolved:
        say(f"terms that refer to another one ('see …') and have its definition: {resolved:,}")
    if unresolved:
        say(f"terms that refer to one that is not there and keep their text as written: {unresolved:,}")
    if beyond:
        say(f"terms left out by --limit-per-source: {beyond:,}")
    if skipped:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in skipped.most_common())
        say(f"skipped: {skipped.total():,}: {reasons}" + (f"; see {rejected_name(output)}" if entries else ""))
    if entries:
        definitions = len({entry.definition for entry in entries})
        pages = sum(1 for one in crawled for page in one.pages if page.entries)
        result(
            f"{output}: {len(entries):,} terms with {definitions:,} different definitions from {pages:,} pages of "
            f"{sum(bool(one.entries) for one in crawled):,} sources"
        )
    if failures:
        kept = f"{output} holds what the others gave" if entries else "nothing was written"
        again = "run the same command again: what was fetched is not asked for again"
        raise Failed(f"{len(failures)} problems with the sources; {kept}; {again}\n  - " + "\n  - ".join(failures))
