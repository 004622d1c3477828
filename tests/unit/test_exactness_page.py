"""docs/evidence/exactness.md and its plot follow from the data file, and the data file from the cells' results."""

import json
import re

import pytest

from tests.soak import exactness_page

RUN = {"date": "2026-01-02", "commit": "abc123", "hardware": "a laptop", "torch": "2.0", "minutes": 3.0}


def result(world: int, gradient: float, losses: list[float] | None = None) -> dict:
    """A cell's result as a rank writes it."""
    found = {"cell": {"kind": "table", "run": "infonce", "chunks": "4 kept"}, "engine": "ddp", "world": world}
    found |= {"gradient": [gradient, 1e-7], "update": [2e-7], "planned": 6, "calls": [6, 6]}
    return found | ({"losses": losses, "planted": [[0.5, 0.7]]} if losses else {})


@pytest.fixture
def text(monkeypatch):
    monkeypatch.setattr(exactness_page, "others", lambda results: ["Nothing hung (2 groups)."])
    reference = {"infonce": {"adamw": {"losses": [1.0, 0.5]}}}
    results = [result(2, 1.2345e-6), result(2, 3e-6, [1.0, 0.5 + 4e-6]), result(3, 2e-6)]
    results.append({"cell": {"kind": "loads"}, "engine": "ddp", "world": 2})  # no cell of the table
    return exactness_page.data(results, reference, dict(RUN))


def test_the_page_and_the_plot_are_made_from_the_data_file():
    text = (exactness_page.FOLDER / exactness_page.DATA).read_text(encoding="utf-8")
    assert (exactness_page.FOLDER / exactness_page.PAGE).read_text(encoding="utf-8") == exactness_page.page(text)
    assert (exactness_page.FOLDER / exactness_page.PLOT).read_text(encoding="utf-8") == exactness_page.plot(text)


def test_the_data_file_has_a_line_per_cell_and_one_for_the_run(text):
    run, *cells = map(json.loads, text.splitlines())
    assert run == RUN | {"planted": 1, "planted_least": 0.5, "others": ["Nothing hung (2 groups)."]}
    assert [(cell["engine"], cell["ranks"], cell["gradient"]) for cell in cells] == [
        ("ddp", 2, 1.23e-6),
        ("ddp", 2, 3e-6),
        ("ddp", 3, 2e-6),
    ]
    assert "adamw_20_steps" not in cells[0] and cells[1]["adamw_20_steps"] == 4e-6
    assert cells[0]["collectives_planned"] == cells[0]["collectives_made"] == 6


def test_the_page_shows_the_largest_error_of_each_group(text):
    page = exactness_page.page(text)
    assert "| ddp | 2 | 2 | 3.0e-06 | 2.0e-07 | 4.0e-06 |" in page
    assert "| ddp | 3 | 1 | 2.0e-06 | 2.0e-07 |  |" in page
    assert "| infonce | 3 | 3.0e-06 |" in page and "each of the 3 combinations" in page
    assert all(str(value) in page for value in (RUN["commit"], RUN["date"], RUN["hardware"], "Nothing hung"))


def test_the_plot_has_a_dot_per_cell_at_its_error(text):
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', exactness_page.plot(text))]
    assert dots == pytest.approx([173.8, 280, 220])
