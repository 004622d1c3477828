"""Rows as inspect reads them: a row group that is the whole file is never in memory."""

import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.workers import Workers
from data_prep.quality.rows import Facts, _read_span, _SpanTask, read_rows
from data_prep.reading.files import Span
from tests.unit.data_prep.helpers import write_jsonl

ROWS, LENGTH = 12_000, 2_000  # 24 MB of texts


@pytest.fixture(scope="module")
def one_row_group(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    queries = [f"query {number}" for number in range(ROWS)]
    table = pa.table({"query": queries, "positive": [f"{query} {'x' * LENGTH}" for query in queries]})
    pq.write_table(table, path, row_group_size=ROWS)
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_group_streams(one_row_group, workers):
    with Workers(workers) as pool:
        tracemalloc.start()
        try:
            facts, take = read_rows(one_row_group, None, None, pool)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < ROWS * LENGTH / 2
    assert len(facts.keys) == ROWS
    assert [record.id for record in take([0, ROWS - 1])] == ["a:1", f"a:{ROWS}"]


def test_a_task_holds_no_lines(one_row_group, tmp_path):
    """The same in the process of a worker."""
    tracemalloc.start()
    try:
        piece = _read_span(_SpanTask(one_row_group, Span(0, 1, 1, 1), None, None, str(tmp_path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ROWS * LENGTH / 2
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [sum(piece.lengths)]


class InTurn(Workers):
    """Workers that run their tasks in this process, in spans as many processes do."""

    def __init__(self):
        super().__init__(1)
        self.ahead = 2


def keys(count: int) -> Iterator[str]:
    """Names without digits, which make no kinds of their own."""
    return ("".join(chr(97 + int(digit)) for digit in f"{number:04}") for number in range(count))


@pytest.mark.parametrize("counted", [50, 60, 10_000])
def test_kinds_of_problems_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch, counted):
    """A kind that the first span shows comes late in the second one, after more kinds than any report shows."""
    monkeypatch.setattr("data_prep.reading.row_problems.Kinds.__init__.__defaults__", (counted,))
    names = list(keys(140))
    path = write_jsonl(tmp_path / "a.jsonl", [{name: "x"} for name in names])
    monkeypatch.setattr("data_prep.quality.rows.SPAN_BYTES", path.stat().st_size)
    write_jsonl(path, [{name: "x"} for name in [*names, *names[70:], *names[:70], *names[:3]]])
    seen = []
    for workers in (Workers(1), InTurn()):
        facts, _ = read_rows(path, None, None, workers)
        seen.append((facts.unreadable.count, [kind.to_json() for kind in facts.unreadable.shown()]))
    assert seen[0] == seen[1]
    count, shown = seen[0]
    assert count == 283 and [kind["line"] for kind in shown] == list(range(1, 51))
    assert [kind["count"] for kind in shown] == [3] * 3 + [2] * 47


def test_the_folder_of_the_tasks_is_there_until_the_last_one_has_ended(tmp_path, monkeypatch):
    """Else a task that is late keeps it there for good."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}] * 100)
    monkeypatch.setattr("data_prep.quality.rows.SPAN_BYTES", 500)
    folders, seen = [], []

    class Refusing(InTurn):
        def submit(self, function, task):
            folders.append(task.folder)
            return lambda: check(["a problem"])

        def stop(self) -> None:
            seen.append(os.path.isdir(folders[0]))

    with pytest.raises(BadInput, match="a problem"):
        read_rows(path, None, None, Refusing())
    assert seen == [True] and not os.path.exists(folders[0])


def test_the_lines_of_a_killed_task_of_a_node_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    add = Facts.add

    def watched(facts: Facts, *row) -> None:
        assert os.listdir(tmp_path) == ["a.jsonl"]
        add(facts, *row)

    monkeypatch.setattr(Facts, "add", watched)
    piece = _read_span(_SpanTask(path, Span(0, 100, 1, 100), None, None, None))
    assert json.loads(piece.lines)["query"] == "q" and len(piece.facts.keys) == 1
