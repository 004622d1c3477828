"""The report of `inspect` as one page: no script, nothing from elsewhere, readable on a phone, light and dark."""

from html import escape
from typing import Any

from data_prep import svg
from data_prep.languages import UNSURE

FIELDS = ("query", "positive", "negative")
SHOWN_SOURCES = 15
SHARES = {
    "exact_duplicates": "exact duplicates",
    "duplicate_queries": "query of an earlier row",
    "shared_positives": "positive of an earlier row",
    "positives_as_negatives": "a positive among the negatives",
    "query_equals_positive": "query equals positive",
}

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1d2530; --soft: #5b6675; --rule: #dfe3e8;
  --rail: #eceff3; --error: #b3261e; --warning: #8a5a00; --good: #23703f;
  --c0: #2f6db5; --c1: #c9603a; --c2: #3b8f63; --c3: #8b62b3; --c4: #b58a12; --c5: #2c8f9b; --c6: #8b95a3; }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --card: #1b2129; --text: #e4e9ef; --soft: #9aa6b4;
  --rule: #303945; --rail: #29313c; --error: #ff8a80; --warning: #f0b95b; --good: #7fd19b;
  --c0: #6aa5e8; --c1: #ea8f68; --c2: #6cc397; --c3: #b995e0; --c4: #dcb84a; --c5: #62c3cf; --c6: #7d8896; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.35rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 10px; }
p.soft, .soft { color: var(--soft); margin: 0 0 12px; font-size: .9rem; overflow-wrap: anywhere; }
section, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px; }
section { margin-top: 16px; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 16px; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.plots { columns: 2 400px; column-gap: 16px; margin-top: 16px; }
.plots section { margin: 0 0 16px; break-inside: avoid; }
.found { list-style: none; margin: 0; padding: 0; }
.found li { border-top: 1px solid var(--rule); padding: 10px 0; overflow-wrap: anywhere; }
.found li:first-child { border-top: 0; padding-top: 0; }
.found b { font-weight: 600; }
.error b, .tile.error b { color: var(--error); }
.warning b { color: var(--warning); }
.good b, .tile.good b { color: var(--good); }
svg { display: block; width: 100%; max-width: 520px; height: auto; overflow: visible; }
svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .small { font-size: 11px; fill: var(--soft); }
svg .mid { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .axis, svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
h3 { font-size: .9rem; margin: 14px 0 4px; font-weight: 600; }
h3:first-of-type { margin-top: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; list-style: none; padding: 0; margin: 10px 0 0; }
.legend li { font-size: .85rem; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 4px; border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; }
"""


def page(report: dict[str, Any]) -> str:
    """The whole page. report: see inspect.inspect."""
    title = escape(report["path"])
    plots = [_sources(report), _repeats(report), *_lengths(report), _cut(report), _languages(report), _table(report)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{title}</h1>{_about(report)}{_tiles(report)}{_findings(report)}"
        f'<div class="plots">{"".join(filter(None, plots))}</div>{_problems(report)}</main></body></html>\n'
    )


def _about(report: dict[str, Any]) -> str:
    splits = ", ".join(f"{name} {rows:,}" for name, rows in report["splits"].items())
    splits = f" ({escape(splits)})" if splits else ""
    return f'<p class="soft">{report["rows"]:,} rows{splits}. Made by <code>python -m data_prep inspect</code>.</p>'


def _tiles(report: dict[str, Any]) -> str:
    errors, warnings = (sum(one["severity"] == kind for one in report["findings"]) for kind in ("error", "warning"))
    tiles = [
        (f"{report['rows']:,}", "rows", ""),
        (f"{len(report['sources']):,}", "sources", ""),
        (f"{errors}", "kinds of errors", "error" if errors else "good"),
        (f"{warnings}", "kinds of warnings", "" if warnings else "good"),
        (f"{report['problems']['count']:,}", "unreadable rows", "error" if report["problems"]["count"] else ""),
    ]
    made = (f'<div class="tile {kind}"><b>{value}</b><span>{what}</span></div>' for value, what, kind in tiles)
    return f'<div class="tiles">{"".join(made)}</div>'


def _findings(report: dict[str, Any]) -> str:
    listed = ((one["severity"], escape(one["line"])) for one in report["findings"])
    items = [f'<li class="{severity}"><b>{severity}</b> {line}</li>' for severity, line in listed]
    items = items or ['<li class="good"><b>Nothing was found to be wrong.</b></li>']
    return f'<section><h2>Findings</h2><ul class="found">{"".join(items)}</ul></section>'


def _section(title: str, about: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{about}</p>{body}</section>'


def _sources(report: dict[str, Any]) -> str:
    total, listed = report["rows"] or 1, list(report["sources"].items())
    if rest := listed[SHOWN_SOURCES:]:
        listed[SHOWN_SOURCES:] = [(f"{len(rest)} more sources", sum(count for _, count in rest))]
    rows = [(name, count / total, f"{count:,} · {100 * count / total:.1f} %") for name, count in listed]
    return _section("Sources", "Rows of each; a batch is of one source.", svg.bars(rows, "rows by source"))


def _repeats(report: dict[str, Any]) -> str:
    near, total = report["near_duplicates"], report["rows"] or 1
    rows = [(meaning, report[name] / total, f"{report[name]:,}") for name, meaning in SHARES.items()]
    about = f"near duplicates (Jaccard {near['similarity']:g})"
    rows.insert(1, (about, near["rows"] / max(1, near["of"]), f"{near['rows']:,}"))
    rows = [(name, share, f"{shown} · {100 * share:.1f} %") for name, share, shown in rows]
    about = "Share of the rows."
    if near["of"] < report["rows"] - report["exact_duplicates"]:
        about += f" Near duplicates were looked for among {near['of']:,} rows."
    return _section("Duplicates and repeats", about, svg.bars(rows, "duplicates and repeated texts"))


def _lengths(report: dict[str, Any]) -> list[str]:
    units = [("characters", report["lengths"])]
    if report["tokens"]:
        units.append(("tokens", report["tokens"]))
    made = []
    for unit, of in units:
        plots = []
        for number, field in enumerate(FIELDS):
            stats = of.get(field)
            if stats:
                counts = stats["histogram"] if unit == "tokens" else stats[unit]["histogram"]
                plots.append(f"<h3>{field}</h3>" + svg.histogram(counts, number, f"{unit} of each {field}"))
        about = f"Share of texts with up to this many {unit} (and more than the bound before)."
        made.append(_section(f"Lengths in {unit}", about, "".join(plots)))
    return made


def _cut(report: dict[str, Any]) -> str:
    if not report["tokens"]:
        body = '<p class="soft">Add <code>--tokenizer MODEL</code> to see what each maximum length would cut.</p>'
        return f"<section><h2>Truncation</h2>{body}</section>"
    series = {}
    for field in FIELDS:
        if of := report["tokens"].get(field):
            series[field] = [(int(bound), count / of["texts"]) for bound, count in of["over"].items()]
    longest = max(of["max"] for of in report["tokens"].values())
    marks = {of["limit"] for of in report["tokens"].values()}
    last = max(2 * longest, 64, *marks)
    series = {name: [point for point in points if point[0] <= last] for name, points in series.items()}
    about = "Share of texts that a maximum length (in tokens, prompts included) cuts."
    return _section("Truncation by maximum length", about, svg.curves(series, marks, "share of texts cut"))


def _languages(report: dict[str, Any]) -> str:
    listed = [name for name in report["sources"] if name in report["languages"]][:SHOWN_SOURCES]
    rows = []
    for name in listed:
        of = report["languages"][name]
        rows += [(f"{name}: queries", of["query"]), (f"{name}: positives", of["positive"])]
    sampled, about = report["sample"]["languages"], "und: too short or too mixed to tell; zxx: no language."
    if sampled < report["rows"]:
        about += f" Counted on {sampled:,} rows, evenly spaced."
    return _section("Languages", about, svg.stacked(rows, UNSURE, "languages by source"))


def _table(report: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "p50", "p90", "p99", "max"))
    rows = []
    for field in FIELDS:
        if field not in report["lengths"]:
            continue
        units = {unit: report["lengths"][field][unit] for unit in ("characters", "words")}
        if report["tokens"] and field in report["tokens"]:
            units["tokens"] = report["tokens"][field]
        for unit, of in units.items():
            cells = "".join(f"<td>{of[name]:,}</td>" for name in ("p50", "p90", "p99", "max"))
            rows.append(f"<tr><td>{field}, {unit}</td>{cells}</tr>")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _section("Lengths", "The length that half, 90 % and 99 % of the texts do not exceed.", body)


def _problems(report: dict[str, Any]) -> str:
    shown, count = report["problems"]["shown"], report["problems"]["count"]
    if not count:
        return ""
    items = [f"<li>{escape('{file}:{line}: {reason}'.format(**row))}</li>" for row in shown]
    if count > len(shown):
        items.append(f"<li>… and {count - len(shown):,} more</li>")
    return f'<section><h2>Rows that cannot be read</h2><ul class="found">{"".join(items)}</ul></section>'
