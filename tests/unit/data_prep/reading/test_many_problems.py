"""Many rows with one problem are one line; keys under other names are renamed; an empty eval split says why."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.reading.formats import read_records
from data_prep.reading.row_problems import SHOWN, Kinds, Problem
from data_prep.records import Record
from data_prep.shards.folder import open_shards
from tests.unit.data_prep.helpers import PAIR, read_jsonl, run, write_jsonl, write_records

SCORED = "sentence1,sentence2,score\n" + "".join(f"one {i},two {i},0.{i % 10}\n" for i in range(200))


def refused(capsys, *arguments) -> list[str]:
    """The lines of the problems of a refused command."""
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    lines = [line.removeprefix("error: ").removeprefix("  - ") for line in err.splitlines()]
    return [line for line in lines if not re.match(r"(note: |\d+ problems|reading )", line)]


def test_two_hundred_rows_with_one_problem_are_one_line_and_the_mend(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(SCORED)
    for command in ("compose", "shard"):
        output = tmp_path / ("o.jsonl" if command == "compose" else "s")
        problem, hint = refused(capsys, command, path, "--output", output)
        assert problem.startswith(f"{path}:2: unknown shape with keys 'sentence1', 'sentence2', 'score'")
        assert problem.endswith("(200 times; also line 3, line 4, line 5, 196 more)")
        assert "--columns query=sentence1,positive=sentence2" in hint


@pytest.mark.parametrize(
    "row, reason",
    [
        ('{"anchor": "a", "positive": %d}', "must be a text, not a number (0) (60 times"),
        ('{"query": "a", "item": "b", "score": %d.5e3}', "key 'score' is 500, outside 0..1"),
        ('{"anchor": "a%d", "positive": "b', "invalid JSON"),
        ('["a", %d]', "this one has 2 values (60 times"),
        ('{"anchor": "a", "positive": "b", "label": "name%d"}', "not a text ('name0')"),
        ('{"query": "a", "pos": ["b"], "neg_scores": [%d]}', "each document needs one (60 times"),
    ],
)
def test_values_and_numbers_make_no_other_kind(tmp_path, capsys, row, reason):
    path = write_jsonl(tmp_path / "a.jsonl", [row % i for i in range(60)])
    (problem, *_) = refused(capsys, "compose", path, "--output", tmp_path / "o.jsonl")
    assert problem.startswith(f"{path}:1: ")
    assert reason in problem
    assert "(60 times; also line 2, line 3, line 4, 56 more)" in problem


def test_other_keys_are_other_kinds_and_places_in_other_files_name_the_file(tmp_path, capsys):
    one = write_jsonl(tmp_path / "a.jsonl", [PAIR, {"anchor": "", "positive": "b"}, {"anchor": "a", "positive": ""}])
    two = write_jsonl(tmp_path / "b.jsonl", [{"anchor": " ", "positive": "b"}] * 2)
    expected = [
        f"{one}:2: key 'anchor' is empty (3 times; also {two}:1, {two}:2)",
        f"{one}:3: key 'positive' is empty",
    ]
    assert refused(capsys, "compose", one, two, "--output", tmp_path / "o.jsonl") == expected
    assert refused(capsys, "shard", one, two, "--output", tmp_path / "s") == expected


def test_a_metadata_field_that_all_rows_lack_is_one_line(tmp_path, capsys):
    path = write_records(tmp_path / "a.jsonl", [Record(f"q{i}", [f"p{i}"], id=f"row {chr(97 + i)}") for i in range(9)])
    (problem,) = refused(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--balance", "topic")
    assert problem.startswith("record row a: metadata field 'topic', asked for by --balance, is missing")
    assert problem.endswith("(9 times)")


def test_inspect_shows_a_line_for_each_kind(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("query,item,score\nq,i,0.5\n" + "".join(f"q{i},i,{i + 2}\n" for i in range(70)) + "q,,0.1\n")
    code, out, _ = run(capsys, "inspect", path, "--json", "--html", tmp_path / "r.html")
    problems = json.loads(out)["problems"]
    assert (code, problems["count"]) == (0, 71)
    assert [(kind["line"], kind["count"]) for kind in problems["shown"]] == [(3, 70), (73, 1)]
    _, out, _ = run(capsys, "inspect", path)
    assert out.count("outside 0..1") == 1
    assert "(70 times)" in out
    assert "(70 times)" in (tmp_path / "r.html").read_text(encoding="utf-8")


def kinds_of(problems: list[Problem], counted: int | None) -> Kinds:
    kinds = Kinds(counted)
    for problem in problems:
        kinds.row(problem)
    return kinds


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2 * SHOWN).map(lambda n: f"kind {chr(97 + n // 26)}{chr(97 + n % 26)}"), max_size=300),
    st.lists(st.integers(0, 300), max_size=8),
    st.integers(SHOWN, 3 * SHOWN),
)
def test_problems_cut_anywhere_and_put_together_are_those_of_one_part(reasons, cuts, counted):
    """However few kinds beyond those that are shown are counted when they are put together."""
    problems = [Problem("a", line, reason) for line, reason in enumerate(reasons, 1)]
    merged = Kinds(counted)
    for start, stop in pairwise([0, *sorted(cuts), max(300, *cuts, 0)]):
        merged.merge(kinds_of(problems[start:stop], None))
    whole = kinds_of(problems, counted)
    assert merged.lines() == whole.lines() and merged.count == whole.count == len(problems)
    assert [kind.to_json() for kind in merged.shown()] == [kind.to_json() for kind in whole.shown()]
    assert len(merged.lines()) <= SHOWN + 1


def test_kinds_that_are_not_shown_are_one_number():
    problems = [Problem("b", i, f"kind {chr(97 + i // 26)}{chr(97 + i % 26)}") for i in range(2 * SHOWN)]
    for counted in (SHOWN, None):
        assert kinds_of(problems, counted).lines()[SHOWN:] == [f"… and {SHOWN} more"]


def test_one_problem_stays_as_it_was():
    kinds = Kinds()
    kinds.row(Problem("a", 3, "key 'x' is missing"))
    assert kinds.lines() == ["a:3: key 'x' is missing"]


def test_columns_rename_in_every_command(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(SCORED)
    names = ("--columns", "query=sentence1,positive=sentence2")
    assert run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", *names)[0] == 0
    first = read_jsonl(tmp_path / "o.jsonl")[3]
    assert (first["query"], first["positives"], first["score"], first["metadata"]) == ("one 3", ["two 3"], 0.3, {})
    flags = ("--output", tmp_path / "s", "--eval-fraction", 0)
    assert run(capsys, "shard", path, *flags, *names)[0] == 0
    assert [row.query for row in open_shards(tmp_path / "s").split("train")][:2] == ["one 0", "one 1"]
    code, out, _ = run(capsys, "inspect", path, "--json", *names)
    assert (code, json.loads(out)["problems"]["count"]) == (0, 0)
    pairs = tmp_path / "b.csv"
    pairs.write_text("frage,antwort\nwhat is mould,a fungus\nwhat is damp,a wet wall\n")
    names = ("--columns", "question=frage,answer=antwort")
    code, _, err = run(capsys, "augment", pairs, "--output", tmp_path / "v.jsonl", "--case-rate", 1, *names)
    assert code == 0, err
    assert read_jsonl(tmp_path / "v.jsonl")[0]["query"] == "what is mould"
    assert run(capsys, "mine", pairs, "--output", tmp_path / "m.jsonl", *names)[0] == 0
    assert read_jsonl(tmp_path / "m.jsonl")[0]["positives"] == ["a fungus"]


def test_columns_swap_keep_metadata_and_name_what_no_row_has(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b", "label": "faq"}])
    (record,) = read_records(path, columns={"anchor": "positive", "positive": "anchor", "label": "topic", "x": "y"})
    assert (record.query, record.positives, record.metadata) == ("b", ["a"], {"topic": "faq"})
    assert "--columns: no row has 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["query", "query=", "=a", "query=a,query=b", "query=a,item=a", ""])
def test_bad_columns_are_refused(tmp_path, capsys, columns):
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR])
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "compose", path, "--output", tmp_path / "o.jsonl", "--columns", columns)
    assert stopped.value.code == 2
    assert "--columns" in capsys.readouterr().err


def test_a_new_name_that_the_row_has_already_is_refused(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"anchor": "a", "positive": "b", "text": "c"}] * 3)
    flags = ("--output", tmp_path / "o.jsonl", "--columns", "positive=text")
    (problem,) = refused(capsys, "compose", path, *flags)
    assert "--columns positive=text: the row has that new name too" in problem


@pytest.mark.parametrize("seed", range(3))
def test_no_eval_split_where_all_rows_hang_together(tmp_path, capsys, seed):
    chain = [Record(f"query {i}", [f"answer {i}", f"answer {i + 1}"]) for i in range(30)]
    star = [Record(f"query {i}", ["I do not know."]) for i in range(30)]
    for rows, shared in ((chain, "in 2 rows"), (star, "in 30 rows, such as a:1 and a:2")):
        path = write_records(tmp_path / "a.jsonl", rows)
        (problem,) = refused(capsys, "shard", path, "--output", tmp_path / "s", "--seed", seed)
        assert "no row is left for the eval split: 30 of 30 rows share texts or documents" in problem
        assert shared in problem
        assert "--split-by FIELD" in problem and "--seed" not in problem


def test_no_eval_split_for_other_reasons(tmp_path, capsys):
    rows = [Record(f"query {i}", [f"answer {i}"], metadata={"site": "one"}) for i in range(4)]
    path = write_records(tmp_path / "a.jsonl", rows)
    (problem,) = refused(capsys, "shard", path, "--output", tmp_path / "s", "--split-by", "site")
    assert "all 4 rows have the same value of --split-by" in problem
    (problem,) = refused(capsys, "shard", path, "--output", tmp_path / "s", "--eval-fraction", 1e-9)
    assert "its 4 rows form 4 groups, each for one split; change --eval-fraction or --seed" in problem
    path = write_records(tmp_path / "a.jsonl", rows[:1] * 5)
    (problem,) = refused(capsys, "shard", path, "--output", tmp_path / "s")
    assert "1 rows are left without duplicates" in problem
    mixed = [Record(f"query {i}", ["the one answer"]) for i in range(9)]
    mixed.append(Record("something else", ["another answer"]))
    path = write_records(tmp_path / "a.jsonl", mixed)
    (problem,) = refused(capsys, "shard", path, "--output", tmp_path / "s", "--eval-fraction", 1e-9)
    assert "9 of 10 rows share texts or documents" in problem
    assert "another --seed can draw from 1 other rows" in problem
