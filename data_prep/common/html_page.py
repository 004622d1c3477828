"""Parts of HTML pages: no script, no external resource, readable on a phone, light and dark. Plots are in svg.py."""

from collections.abc import Iterable
from html import escape

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
p.soft code { white-space: nowrap; }
p.lead { margin: 0 0 12px; font-weight: 600; overflow-wrap: anywhere; }
p.lead:last-child { margin: 0; }
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
svg text { fill: var(--text); font: 10.5px system-ui, sans-serif; }  /* a plot is 1.3 times larger on a desktop, */
svg .small { font-size: 9.5px; fill: var(--soft); }
svg .mid { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .axis, svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
h3 { font-size: .9rem; margin: 14px 0 4px; font-weight: 600; }
h3:first-of-type { margin-top: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; list-style: none; padding: 0; margin: 10px 0 0; }
.legend li { font-size: .85rem; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; max-width: 680px; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 4px; border-top: 1px solid var(--rule); }
td code { overflow-wrap: anywhere; }
td small { color: var(--soft); font-size: .75rem; white-space: nowrap; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td:first-child { color: var(--soft); width: 1%; padding-right: 14px; white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--rail); border-radius: 6px; padding: 10px 12px;
  margin: 0 0 12px; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
details summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
details { margin-top: 14px; }
details pre { margin-top: 10px; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 4px 20px; }
.sides h4 { font-size: .8rem; font-weight: 500; color: var(--soft); margin: 8px 0 2px; }
.sides ol { margin: 0; padding-left: 22px; font-size: .85rem; }
.sides li { padding: 2px 0; border: 0; overflow-wrap: anywhere; }
.sides small { color: var(--soft); }
.sides li.right { color: var(--good); }
@media (max-width: 460px) {
  svg text { font-size: 13.5px; }  /* and smaller than its units on a phone */
  svg .small { font-size: 11.5px; }
  table { font-size: .8rem; }
  th, td { padding: 5px 2px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile:last-child:nth-child(odd) { grid-column: span 2; }
}
"""


def page(title: str, subtitle: str, body: str) -> str:
    """Returns a whole page. title: plain text; subtitle: HTML of the line below it."""
    title = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{title}</h1><p class="soft">{subtitle}</p>{body}</main></body></html>\n'
    )


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """Returns large figures. shown: (figure, its name, CSS class: error, good or empty)."""
    boxes = (f'<div class="tile {kind}"><b>{value}</b><span>{name}</span></div>' for value, name, kind in shown)
    return f'<div class="tiles">{"".join(boxes)}</div>'


def section(title: str, subtitle: str, body: str, kind: str = "soft") -> str:
    """Returns a card with a title and a line below it. kind: CSS class of the line: soft, or lead where it matters."""
    return f'<section><h2>{title}</h2><p class="{kind}">{subtitle}</p>{body}</section>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table of numbers. Cells are HTML; the first column is left-aligned."""
    top = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{_rows(rows)}</tbody></table>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table of names and their values. Cells are HTML."""
    return f'<table class="facts"><tbody>{_rows(rows)}</tbody></table>'


def _rows(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
