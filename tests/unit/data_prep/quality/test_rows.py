"""Rows as inspect reads them: a row group that is the whole file is never in memory."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.common.workers import Workers
from data_prep.quality.rows import _read_span, _SpanTask, read_rows
from data_prep.reading.files import Span

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
