"""The report of `inspect` as one page; its parts are in page.py and svg.py."""

from html import escape
from pathlib import Path
from typing import Any

from data_prep.common import html_page as pages
from data_prep.common import svg
from data_prep.common.html_page import section
from data_prep.reading.row_problems import problem_lines
from data_prep.texts.languages import UNSURE

FIELDS = ("query", "positive", "negative")
SHOWN_SOURCES = 15
SHARES = {
    "exact_duplicates": "exact duplicates",
    "duplicate_queries": "query of an earlier row",
    "shared_positives": "positive of an earlier row",
    "positives_as_negatives": "a positive among the negatives",
    "query_equals_positive": "query equals positive",
}


def page(report: dict[str, Any]) -> str:
    """Returns the whole page. report: see inspect.inspect."""
    splits = ", ".join(f"{name} {rows:,}" for name, rows in report["splits"].items())
    splits = f" ({escape(splits)})" if splits else ""
    subtitle = f"{report['rows']:,} rows{splits} of {escape(report['path'])}. Made by <code>python -m data_prep "
    subtitle += "inspect</code>."
    plots = [_sources(report), _repeats(report), *_lengths(report), _cut(report), _languages(report), _table(report)]
    shown = f'<div class="plots">{"".join(filter(None, plots))}</div>'
    body = f"{_tiles(report)}{_findings(report)}{shown}{_problems(report)}"
    return pages.page(Path(report["path"]).name, subtitle, body)


def _tiles(report: dict[str, Any]) -> str:
    errors, warnings = (sum(one["severity"] == kind for one in report["findings"]) for kind in ("error", "warning"))
    tiles = [
        (f"{report['rows']:,}", "rows", ""),
        (f"{len(report['sources']):,}", "sources", ""),
        (f"{errors}", "kinds of errors", "error" if errors else "good"),
        (f"{warnings}", "kinds of warnings", "" if warnings else "good"),
        (f"{report['problems']['count']:,}", "unreadable rows", "error" if report["problems"]["count"] else ""),
    ]
    return pages.tiles(tiles)


def _findings(report: dict[str, Any]) -> str:
    listed = ((one["severity"], escape(one["line"])) for one in report["findings"])
    items = [f'<li class="{severity}"><b>{severity}</b> {line}</li>' for severity, line in listed]
    items = items or ['<li class="good"><b>Nothing was found to be wrong.</b></li>']
    return f'<section><h2>Findings</h2><ul class="found">{"".join(items)}</ul></section>'


def _sources(report: dict[str, Any]) -> str:
    total, listed = report["rows"] or 1, list(report["sources"].items())
    if rest := listed[SHOWN_SOURCES:]:
        listed[SHOWN_SOURCES:] = [(f"{len(rest)} more sources", sum(count for _, count in rest))]
    rows = [(name, count / total, f"{count:,} · {100 * count / total:.1f} %") for name, count in listed]
    return section("Sources", "Rows of each; a batch is of one source.", svg.bars(rows, "rows by source"))


def _repeats(report: dict[str, Any]) -> str:
    near, total = report["near_duplicates"], report["rows"] or 1
    rows = [(meaning, report[name] / total, f"{report[name]:,}") for name, meaning in SHARES.items()]
    intro = f"near duplicates (Jaccard {near['similarity']:g})"
    rows.insert(1, (intro, near["rows"] / max(1, near["of"]), f"{near['rows']:,}"))
    rows = [(name, share, f"{shown} · {100 * share:.1f} %") for name, share, shown in rows]
    intro = "Share of the rows."
    if near["of"] < report["rows"] - report["exact_duplicates"]:
        intro += f" Near duplicates were looked for among {near['of']:,} rows."
    return section("Duplicates and repeats", intro, svg.bars(rows, "duplicates and repeated texts"))


def _lengths(report: dict[str, Any]) -> list[str]:
    units = [("characters", report["lengths"])]
    if report["tokens"]:
        units.append(("tokens", report["tokens"]))
    sections = []
    for unit, lengths in units:
        plots = []
        for number, field in enumerate(FIELDS):
            stats = lengths.get(field)
            if stats:
                counts = stats["histogram"] if unit == "tokens" else stats[unit]["histogram"]
                plots.append(f"<h3>{field}</h3>" + svg.histogram(counts, number, f"{unit} of each {field}"))
        intro = f"Share of texts with up to this many {unit} (and more than the bound before)."
        sections.append(section(f"Lengths in {unit}", intro, "".join(plots)))
    return sections


def _cut(report: dict[str, Any]) -> str:
    tokens = report["tokens"]
    if not tokens:
        body = '<p class="soft">Add <code>--tokenizer MODEL</code> to see what each maximum length would cut.</p>'
        return f"<section><h2>Truncation</h2>{body}</section>"
    marks = {of["limit"] for of in tokens.values()}
    last = max(2 * max(of["max"] for of in tokens.values()), 64, *marks)
    series = {}
    for field in (name for name in FIELDS if name in tokens):
        shares = ((int(bound), count / tokens[field]["texts"]) for bound, count in tokens[field]["over"].items())
        series[field] = [(bound, share) for bound, share in shares if bound <= last]
    intro = "Share of texts that a maximum length (in tokens, prompts included) cuts."
    return section("Truncation by maximum length", intro, svg.curves(series, marks, "share of texts cut"))


def _languages(report: dict[str, Any]) -> str:
    listed = [name for name in report["sources"] if name in report["languages"]][:SHOWN_SOURCES]
    rows = []
    for name in listed:
        shares = report["languages"][name]
        rows += [(f"{name}: queries", shares["query"]), (f"{name}: positives", shares["positive"])]
    sampled, intro = report["sample"]["languages"], "und: too short or too mixed to tell; zxx: no language."
    if sampled < report["rows"]:
        intro += f" Counted on {sampled:,} rows, evenly spaced."
    return section("Languages", intro, svg.stacked(rows, UNSURE, "languages by source"))


def _table(report: dict[str, Any]) -> str:
    rows = []
    for field in (name for name in FIELDS if name in report["lengths"]):
        units = {unit: report["lengths"][field][unit] for unit in ("characters", "words")}
        if report["tokens"] and field in report["tokens"]:
            units["tokens"] = report["tokens"][field]
        for unit, of in units.items():
            rows.append((f"{field}, {unit}", *(f"{of[name]:,}" for name in ("p50", "p90", "p99", "max"))))
    body = pages.table(("", "p50", "p90", "p99", "max"), rows)
    return section("Lengths", "The length that half, 90 % and 99 % of the texts do not exceed.", body)


def _problems(report: dict[str, Any]) -> str:
    items = [f"<li>{escape(line)}</li>" for line in problem_lines(report["problems"])]
    if not items:
        return ""
    return f'<section><h2>Rows that cannot be read</h2><ul class="found">{"".join(items)}</ul></section>'
