"""Many processes, inputs cut anywhere, rounds of any size: the same bytes, the same words, nothing left behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv

from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import check
from data_prep.common.workers import Workers
from data_prep.reading.formats import source_names
from data_prep.records import Record
from data_prep.sharding import build
from data_prep.sharding.build import shard
from data_prep.sharding.exclusions import Exclusions
from data_prep.sharding.split import EVAL, LEFT_OUT, SplitPlan, memory_for
from data_prep.sharding.spool import cut, read_part, read_tasks
from data_prep.sharding.tokenise import TokenOptions
from data_prep.shards.folder import open_shards
from tests.launching import ROOT, environment
from tests.unit.data_prep.helpers import documents, run, write_jsonl, write_records
from tests.unit.data_prep.sharding.test_build import contents


@pytest.fixture
def small_spans(monkeypatch):
    """Every task reads a few lines, so that a small file is work for many."""
    monkeypatch.setattr("data_prep.sharding.spool.SPAN_BYTES", 900)
    monkeypatch.setattr("data_prep.sharding.build.SPAN_BYTES", 900)


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, small_spans):
    some = [*documents(60), *documents(5), Record("Frage ä", ["Antwort ü"], ["n"], 0.5, metadata={"z": 1, "a": "é"})]
    first = write_records(tmp_path / "a.jsonl", some)
    second = write_jsonl(tmp_path / "b.csv", ["term,definition", *(f"term {i},meaning {i}" for i in range(30))])
    for workers in (1, 3):
        output = tmp_path / f"s{workers}"
        manifest = shard([first, second], output, eval_fraction=0.3, num_shards=3, workers=workers)
        assert manifest["duplicates_removed"] == 15
        assert contents(output) == contents(tmp_path / "s1")


def test_bad_rows_of_many_tasks_are_listed_like_those_of_one(tmp_path, small_spans, monkeypatch, capsys):
    never = "data_prep.common.console.EVERY_SECONDS", float("inf")  # a slow machine shows its progress in between
    monkeypatch.setattr(*never)
    lines = [
        {"anchor": f"a{i}", "positive": f"b{i}" if i % 3 else "", "tag" if i < 150 else "late": 1} for i in range(200)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [*lines, "", "{", {"foo": 1}])
    told = []
    for workers in (1, 2):
        code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--workers", workers)
        assert code == 2
        told.append(err)
    monkeypatch.undo()
    monkeypatch.setattr(*never)
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--workers", 1)
    assert told == [err, err]
    assert "a.jsonl:1: key 'positive' is empty (67 times; also line 4, line 7, line 10, 63 more)" in err
    assert "a.jsonl:202: invalid JSON" in err
    assert "keys that are not used stay in metadata: tag, late" in err
    assert "1 blank lines hold no row" in err
    assert "accepted rows:" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


some_rows = st.lists(
    st.builds(
        lambda q, p, doc: Record(f"q{q}", [f"p{p}"], doc_ids=[f"d{doc}"], metadata={"field": doc % 3}),
        *[st.integers(0, 25)] * 3,
    ),
    min_size=2,
    max_size=40,
)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_rows, st.integers(1, 400), st.integers(1, 9), st.booleans())
def test_cutting_the_input_and_sorting_in_rounds_change_nothing(
    tmp_path, monkeypatch, some, span, round_rows, by_field
):
    path = write_records(tmp_path / "a.jsonl", some)
    how = {
        "eval_fraction": 0.4,
        "split_by": "field" if by_field else None,
        "on_leakage": "drop-train",
        "overwrite": True,
    }

    def made(name):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        try:
            shard([path], tmp_path / name, **how)
        except BadInput as error:
            return str(error).replace(f"/{name}", "")
        return contents(tmp_path / name)

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.sharding.spool.SPAN_BYTES", span)
        patched.setattr("data_prep.sharding.split.ROUND", round_rows)
        cut = made("cut")
    assert cut == made("whole")


def plan_of(folder, some, by_field=False, fraction=0.5) -> SplitPlan:
    shutil.rmtree(folder / "spool", ignore_errors=True)
    (folder / "spool").mkdir()
    path = write_records(folder / "a.jsonl", some)
    tasks = read_tasks(source_names([path]), folder / "spool", None, "field" if by_field else None, Exclusions())
    return SplitPlan(folder / "spool", [read_part(task) for task in tasks], by_field, fraction, 0)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_rows)
def test_groups_are_the_connected_rows(tmp_path, some):
    """Against the definition: rows reach each other through equal queries, positives and documents, and an exact
    duplicate lends its document to the row that stays."""
    plan = plan_of(tmp_path, some)
    texts = [(record.query, record.positives[0]) for record in some]
    twins = [texts.index(own) for own in texts]
    assert plan.kept.tolist() == [row == twin for row, twin in enumerate(twins)]
    keys = [{*own, record.doc_ids[0]} for own, record in zip(texts, some)]  # q…, p… and d…: no two kinds are equal
    reached = list(range(len(some)))
    for _ in some:
        for row, own in enumerate(keys):
            for other, theirs in enumerate(keys):
                if own & theirs:
                    reached[row] = reached[other] = min(reached[row], reached[other])
    groups = plan._connected()
    kept = [row for row in range(len(some)) if plan.kept[row]]
    assert all((reached[a] == reached[b]) == (groups[a] == groups[b]) for a in kept for b in kept)


def test_leaks_are_named_with_the_first_rows_that_hold_them(tmp_path):
    some = [Record(f"q{i}", ["shared" if i in (3, 5, 8) else f"p{i}"], metadata={"field": i % 2}) for i in range(10)]
    plan = plan_of(tmp_path, some, by_field=True)
    splits = np.array([i % 2 for i in range(10)], np.uint8)  # train 0, eval 1: rows 3 and 5 are of eval, row 8 of train
    leaks = plan.leaks(splits)
    assert (leaks.train_rows.tolist(), leaks.eval_rows.tolist()) == ([8], [3])
    assert plan.drop(splits, leaks, EVAL) == 2
    assert np.flatnonzero(splits == LEFT_OUT).tolist() == [3, 5]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_a_split_is_cut_into_runs_of_the_sizes_asked_for(counts, sizes):
    rows = [(part, row) for part, held in enumerate(counts) for row in range(held)]
    for size, pieces in zip(sizes, cut(counts, sizes), strict=True):
        found = [(piece.part, piece.first + i) for piece in pieces for i in range(piece.count)]
        assert found == rows[:size]
        del rows[:size]


def test_cutting_takes_as_long_as_there_are_parts_not_parts_for_each_task():
    """Looking through all parts for each task would take an hour here."""
    assert sum(map(len, cut([10] * 200_000, [20] * 100_000))) == 200_000


def test_a_killed_worker_is_said_and_an_error_keeps_its_kind():
    with Workers(2) as pool, pytest.raises(Failed, match="a worker process was killed"):
        list(pool.map(os._exit, [1, 1]))
    with Workers(2) as pool, pytest.raises(BadInput) as error:
        list(pool.map(check, [[], ["a problem", "and another"], []]))
    assert error.value.problems == ["a problem", "and another"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file that two workers take a few seconds for."""
    path = tmp_path_factory.mktemp("large") / "a.jsonl"
    draw = random.Random(0)
    texts = (" ".join(f"w{draw.randrange(5000)}" for _ in range(60)) for _ in range(20_000))
    path.write_text("".join(json.dumps({"query": f"q {i}", "positive": t}) + "\n" for i, t in enumerate(texts)))
    return path


def start(path, output):
    command = [sys.executable, "-m", "data_prep", "shard", str(path), "--output", str(output), "--workers", "2"]
    return psutil.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def stopped_half_way(process, build, signum) -> list[psutil.Process]:
    """Sends the signal once a part is on the disk; returns the processes that worked for it."""
    until = time.monotonic() + 60
    while not any((build / "spool").glob("*.npz")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    workers = process.children(recursive=True)
    process.send_signal(signum)
    process.wait(60)
    assert process.returncode, process.stderr.read()
    return workers


def test_killed_half_way_it_is_refused_and_the_rerun_succeeds(large, tmp_path):
    output, build = tmp_path / "s", tmp_path / ".s.unfinished"
    process = start(large, output)
    workers = stopped_half_way(process, build, signal.SIGKILL)
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=10)[1], "workers outlived the command"
    for folder, message in ((output, "no such folder"), (build, "has no manifest.json, so it is unfinished")):
        with pytest.raises(BadInput, match=message):
            open_shards(folder)
    again = start(large, output)
    assert again.wait(120) == 0
    assert f"removing what an interrupted run left: {build}" in again.stderr.read()
    assert not list(tmp_path.glob(".s*")), "the build and its lock are gone"
    shard([large], tmp_path / "alone")
    assert contents(output) == contents(tmp_path / "alone")


def test_ctrl_c_is_one_line_and_leaves_nothing(large, tmp_path):
    process = start(large, tmp_path / "s")
    workers = stopped_half_way(process, tmp_path / ".s.unfinished", signal.SIGINT)
    assert process.returncode == 130
    assert process.stderr.read().splitlines()[-1] == "stopped by Ctrl-C"
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not any(tmp_path.iterdir())


def test_a_decision_that_does_not_fit_into_memory_is_refused_early(tmp_path, small_spans, monkeypatch, capsys):
    path = write_records(tmp_path / "a.jsonl", documents(100))
    need = memory_for(300, None)
    monkeypatch.setattr("data_prep.sharding.build.SAID_FROM", 300)
    monkeypatch.setattr("data_prep.sharding.build.free_memory", lambda: need)
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--workers", 1)
    assert code == 0
    assert "300 rows are decided on in this process, which takes about 0.2 GB of memory; 0.2 GB are free here" in err
    monkeypatch.setattr("data_prep.sharding.build.free_memory", lambda: need - 1)
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--workers", 1, "--overwrite")
    assert code == 1 and "\nerror: 300 rows are decided on" in f"\n{err}" and "shard fewer rows" in err
    monkeypatch.setattr("data_prep.sharding.build.free_memory", lambda: need // 2 - 1)
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s", "--workers", 1, "--overwrite")
    assert code == 1 and "\nerror: about 3" in f"\n{err}"  # from the first 16 parts


@pytest.mark.parametrize("suffix, first", [(".jsonl", 200), (".csv", 1600), (".csv.gz", 1600), (".parquet", 200)])
def test_an_estimate_adds_no_more_than_the_rest_of_a_file(tmp_path, small_spans, monkeypatch, suffix, first):
    """Each of 20 inputs has 100 rows, and is one part or about ten. first: the rows of the inputs of 16 parts."""
    table = pa.table({name: [f"{name} {i} {'x' * 20}" for i in range(100)] for name in ("anchor", "positive")})
    inputs = [tmp_path / f"{number}{suffix}" for number in range(20)]
    for path in inputs:
        if suffix == ".jsonl":
            write_jsonl(path, table.to_pylist())
        elif suffix == ".parquet":
            pq.write_table(table, path, row_group_size=10)
        else:
            with pa.output_stream(str(path)) as file:  # packs by the name
                csv.write_csv(table, file)
    asked = []
    monkeypatch.setattr(build, "check_memory", lambda rows, _, estimated=False: asked.append((rows, estimated)))
    shard(inputs, tmp_path / "s", eval_fraction=0)
    *estimates, counted = asked
    assert counted == (2000, False)
    assert all(estimated and rows <= 2010 for rows, estimated in estimates)
    assert estimates[0][0] == pytest.approx(first, abs=10)


def test_a_tokenizer_that_fails_ends_the_reading_or_is_told_with_the_rows(tmp_path, small_spans):
    (tmp_path / "spool").mkdir()
    path = write_records(tmp_path / "a.jsonl", [*documents(30), Record("", ["an answer"])])
    tokenizer, names, read = Future(), source_names([path]), []

    def reading(fails_after):
        for task in read_tasks(names, tmp_path / "spool", None, None, Exclusions()):
            read.append(task)
            yield task
            if len(read) == fails_after:
                tokenizer.set_exception(BadInput("--tokenizer x: has no fast tokenizer"))
        if not fails_after:
            tokenizer.set_exception(BadInput("--tokenizer x: has no fast tokenizer"))

    with pytest.raises(BadInput) as error:
        build._read(Workers(1), reading(fails_after=0), names, None, None, tokenizer)
    assert error.value.problems[0] == "--tokenizer x: has no fast tokenizer"
    assert "a.jsonl:91: key 'query' is empty" in error.value.problems[1]
    assert len(read) > 5
    tokenizer = Future()
    read.clear()
    with pytest.raises(BadInput, match="no fast tokenizer") as error:
        build._read(Workers(1), reading(fails_after=1), names, None, None, tokenizer)
    assert len(read) == 2 and len(error.value.problems) == 1


def test_a_bad_tokenizer_is_told_before_the_decision(tmp_path, small_spans, monkeypatch, tiny_bert):
    """Whatever the number of workers."""
    path = write_records(tmp_path / "a.jsonl", documents(30))
    monkeypatch.setattr(build, "SplitPlan", lambda *_: pytest.fail("rows were decided on"))
    tokens = TokenOptions(str(tiny_bert), query_prompt="a prompt that is longer than the text may be", query_max_len=5)
    for workers in (1, 2):
        with pytest.raises(BadInput, match="--query-prompt"):
            shard([path], tmp_path / "s", tokens=tokens, workers=workers)
