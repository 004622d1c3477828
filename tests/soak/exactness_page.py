"""Writes docs/evidence/exactness.jsonl, and from it the page and the plot beside it.

- exactness.jsonl: the run in its first line, then one line per cell. Errors have three digits at most.
- The page and the plot are functions of that file alone: `python -m tests.soak.exactness_page` writes both again.
"""

import json
from html import escape
from pathlib import Path

from tests.launching import ROOT
from tests.multiprocess.report import GRADIENT, LOSS, figures, others

FOLDER = ROOT / "docs" / "evidence"
ERRORS = ("gradient", "sgd_update", "adamw_20_steps")
DATA, PAGE, PLOT = "exactness.jsonl", "exactness.md", "exactness.svg"

TEXT = """# Exactness

**With dropout 0, a run's gradient does not depend on where it runs.** One, two and three ranks; DDP and ZeRO 1, 2, 3;
ten losses; whole and chunked batches: each of the {cells} combinations is one *cell*. In every cell the gradient is
that of one process to a relative error below {gradient_limit}. The largest measured error is {gradient}.

![Relative error of the gradient in every cell, by engine and number of ranks]({plot})

| | |
| --- | --- |
| command | `python -m tests.soak.exactness`, {minutes:.0f} minutes |
| day | {date} |
| commit | {commit} |
| hardware | {hardware}, torch {torch} |
| every cell | [{data}]({data}) |
{note}
`bash tests/run.sh tests/multiprocess` runs a sample of the cells, with every pair of values, on every version.

## Method

- Model: a two-layer BERT in fp32. Data: 82 rows with different numbers of hard negatives, in batches of 16. The last
  batch has two rows, so a third rank gets none.
- Reference: one process with one padded batch and plain autograd. Its losses are written a second time, from their
  formulas (`tests/multiprocess/dense.py`).
- Chunks: all texts in one chunk (`1 chunk`); four, of which three are embedded twice (`4 chunks`); four, all kept
  (`4 kept`).
- The comparison can fail: a planted factor of W or 1/W (W is the number of ranks) shows as an error of at least
  {planted_least:.2f}, in {planted} plantings.
- Collective calls are counted: every cell makes the planned number per step (DeepSpeed's own are not counted).

## Largest errors

- **gradient**: relative error of the raw gradient before clipping, over all parameters as one vector; the larger of
  a whole and of a last batch. Limit {gradient_limit}.
- **SGD update**: the same error for one unclipped SGD step, where neither AdamW nor clipping can hide a wrong factor.
  Limit {gradient_limit}.
- **20 AdamW steps**: largest difference of a loss within 20 clipped steps with warm-up and decay. Limit {loss_limit}.

A group is one engine with one number of ranks; `cpu` is one process without a launcher.

{by_engine}

{by_loss}

{by_chunks}

## Further checks of the same run

{others}
"""


def data(results: list[dict], reference: dict, run: dict) -> str:
    """Returns the data file's text. run: date, commit, hardware, torch, minutes."""
    rows = [result for result in results if result["cell"]["kind"] == "table"]
    planted = [error for row in rows for errors in row.get("planted", []) for error in errors]
    plantings = sum(len(row.get("planted", [])) for row in rows)
    run |= {"planted": plantings, "planted_least": _short(min(planted)), "others": others(results)}
    return "".join(json.dumps(line) + "\n" for line in [run, *(_cell(row, reference) for row in rows)])


def _cell(result: dict, reference: dict) -> dict:
    cell = result["cell"]
    errors = {name: _short(error) for name, error in zip(ERRORS, figures(result, reference)) if error is not None}
    calls = {"collectives_planned": result["planned"], "collectives_made": max(result["calls"])}
    where = {"engine": result["engine"], "ranks": result["world"], "chunks": cell["chunks"], "loss": cell["run"]}
    return where | errors | calls


def _short(number: float) -> float:
    return float(f"{number:.2e}")


def page(text: str) -> str:
    """Returns the page for the data file's text."""
    run, *cells = map(json.loads, text.splitlines())
    note = f"\n{run.pop('note')}\n" if "note" in run else ""
    further = "\n".join(f"- {line}" for line in run.pop("others"))
    return TEXT.format(
        **run,
        cells=len(cells),
        gradient=_shown(cells, "gradient"),
        gradient_limit=f"{GRADIENT:.0e}",
        loss_limit=f"{LOSS:.0e}",
        note=note,
        data=DATA,
        plot=PLOT,
        by_engine=_table(cells, ("engine", "ranks")),
        by_loss=_table(cells, ("loss",)),
        by_chunks=_table(cells, ("chunks",)),
        others=further,
    )


def _groups(cells: list[dict], keys: tuple[str, ...]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return groups


def _table(cells: list[dict], keys: tuple[str, ...]) -> str:
    header = (*keys, "cells", "gradient", "SGD update", "20 AdamW steps")
    rows = [
        (*values, len(group), *(_shown(group, name) for name in ERRORS))
        for values, group in _groups(cells, keys).items()
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows))


def _shown(cells: list[dict], name: str) -> str:
    errors = [cell[name] for cell in cells if name in cell]
    return f"{max(errors):.1e}" if errors else ""


LEFT, RIGHT, ROW = 100, 700, 22  # of the plot, in its units


def plot(text: str) -> str:
    """Returns the plot as SVG: one row per engine and number of ranks, one dot per cell, a line at the limit."""
    groups = _groups([json.loads(line) for line in text.splitlines()[1:]], ("engine", "ranks"))
    base = ROW * len(groups) + 16
    parts = []
    for tenth in range(0, 11, 2):
        x = _x(GRADIENT * tenth / 10)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="{base}" stroke="#{"c0392b" if tenth == 10 else "ddd"}"/>'
        )
        mark = f"limit {GRADIENT:.0e}" if tenth == 10 else f"{GRADIENT * tenth / 10:.0e}" if tenth else "0"
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{mark}</text>')
    for row, ((engine, ranks), cells) in enumerate(groups.items()):
        y = ROW * row + 22
        name = f"{engine}, {ranks} rank{'s' * (ranks > 1)}"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        dots = "".join(f'<circle cx="{_x(cell["gradient"]):.1f}" cy="{y}" r="4"/>' for cell in cells)
        parts.append(f'<g fill="#2b6cb0" fill-opacity=".35">{dots}</g>')
    label = "Relative error of the gradient, one dot per cell"
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{base + 36}" text-anchor="middle">{label}</text>')
    width, height = RIGHT + 50, base + 46
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
        f'font-family="sans-serif" font-size="12" fill="#222"><rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _x(error: float) -> float:
    return LEFT + (RIGHT - LEFT) * error / GRADIENT


def write(text: str, folder: Path = FOLDER) -> None:
    """Writes the data file, the page and the plot."""
    for name, content in ((DATA, text), (PAGE, page(text)), (PLOT, plot(text))):
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write((FOLDER / DATA).read_text(encoding="utf-8"))
