"""The gate: planted defects are counted exactly, and training does not start on leakage unless it is told to."""

import json
import random
import re
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.quality import gate
from data_prep.quality.checks import NO_TRAINING, Finding, imbalance, markup, markup_of, prompts
from data_prep.quality.row_keys import Keys
from data_prep.quality.sampling import Spool, spread
from data_prep.records import Record, is_variant, normalise
from data_prep.sharding.build import shard
from data_prep.sharding.tokenise import TokenOptions
from data_prep.shards.folder import Rows, open_shards
from data_prep.texts.languages import UNSURE, language
from data_prep.texts.prompts import OwnPrompts
from data_prep.texts.token_lengths import Reader
from data_prep.texts.tokenizer_rules import TextRules, read_text_rules
from launch.__main__ import main as launch_main
from tests import planted
from tests.launching import run as start
from tests.unit.data_prep.helpers import run, write_jsonl, write_records
from tests.unit.data_prep.quality.test_decontaminate import write_set
from trainer.__main__ import main as train_main
from trainer.config.sections import DataConfig


@pytest.fixture(scope="session")
def prompted(tiny_bert, tmp_path_factory):
    """A model folder with prompts and 32 tokens at most."""
    import shutil

    folder = tmp_path_factory.mktemp("models") / "prompted"
    shutil.copytree(tiny_bert, folder)
    stated = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    return folder


def test_inspect_counts_every_planted_defect_exactly(tmp_path, prompted, capsys):
    rows, held, planned = planted.defects(400)
    path, evaluation = write_jsonl(tmp_path / "in.jsonl", rows), write_set(tmp_path / "set", held)
    command = ("inspect", path, "--tokenizer", prompted, "--exclude", evaluation)
    code, out, _ = run(capsys, *command, "--json", "--html", tmp_path / "page.html")
    assert code == 0
    report = json.loads(out)
    found = {one["name"]: one["count"] for one in report["findings"]}
    assert {name: found.get(name, report.get(name)) for name in planned} == planned
    assert {one["name"] for one in report["findings"] if one["severity"] == "error"} == {
        "empty_texts",
        *NO_TRAINING,
    }
    assert found.keys() == {*planned, "duplicates", "equal_texts"} - {"exact_duplicates", "query_equals_positive"}
    assert report["tokens"]["positive"]["cut"] == planned["truncation"]
    assert report["languages"]["in"]["positive"]["fr"] == planned["languages"]
    assert report["problems"]["count"] == planned["empty_texts"]
    assert report["near_duplicates"]["rows"] == 0
    code, out, _ = run(capsys, *command)
    assert code == 0
    for one in report["findings"]:
        assert f"{one['severity']} {one['line']}" in out
    check_page((tmp_path / "page.html").read_text(encoding="utf-8"), report)


def check_page(page: str, report: dict) -> None:
    """One page, well-formed, that fetches and runs nothing, with a plot of each kind and every finding."""
    ElementTree.fromstring(page.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', "").replace(
        '<meta name="viewport" content="width=device-width, initial-scale=1">', ""))  # fmt: skip
    assert not re.search(r"<script|https?:|src=|href=|url\(|@import", page)
    labels = re.findall(r'aria-label="([^"]*)"', page)
    for plot in ("rows by source", "duplicates", "characters of", "tokens of", "share of texts cut", "languages"):
        assert any(plot in label for label in labels), plot
    assert page.count('<li class="error">') + page.count('<li class="warning">') == len(report["findings"])
    assert "prefers-color-scheme: dark" in page


def test_an_eval_split_and_near_duplicates_are_seen_in_shards(tmp_path, capsys):
    prose, rng = planted.Prose(), random.Random(0)
    records = [Record(**prose.pair()) for _ in range(300)]
    copies = [planted.near(record, 0.88, rng) for record in records[:60]]
    shard([write_records(tmp_path / "a.jsonl", [*records, *copies])], tmp_path / "s", eval_fraction=0.2)
    code, out, _ = run(capsys, "inspect", tmp_path / "s", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["splits"].keys() == {"train", "eval"}
    assert 57 <= report["near_duplicates"]["rows"] <= 60
    assert report["sample"] == {"languages": 360, "near_duplicates": 360, "tokens": 0}
    assert "leakage" not in {one["name"] for one in report["findings"]}
    code, out, _ = run(capsys, "inspect", tmp_path / "s", "--exclude", tmp_path / "s", "--json")
    assert {one["name"] for one in json.loads(out)["findings"]} >= {"near_leakage", "near_duplicates"}


def test_languages_that_are_not_known_have_words_in_the_table(tmp_path, capsys):
    rows = [
        Record("pager", ["x9 q"], []),
        Record("Where does the train to the north leave from today?", ["12 345"], []),
    ]
    code, out, err = run(capsys, "inspect", write_records(tmp_path / "in.jsonl", rows))
    assert code == 0, err
    assert re.search(r"\bunsure \d+ %", out)
    assert not re.search(r"\b(und|zxx) \d", out)


def test_clean_rows_are_said_to_be_clean(tmp_path, capsys):
    prose = planted.Prose()
    path = write_jsonl(tmp_path / "a.jsonl", [prose.pair() for _ in range(50)])
    code, out, _ = run(capsys, "inspect", path, "--html", tmp_path / "page.html")
    assert code == 0
    assert "nothing was found to be wrong" in out
    assert "Nothing was found to be wrong." in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--html", "page.htm"), "--html page.htm: must end in .html"),
        (("--tokenizer", "nowhere/at/all"), "--tokenizer: nowhere/at/all is not a folder"),
        (("--exclude", "nowhere"), "--exclude nowhere: no such folder"),
    ],
)
def test_bad_options_are_told_before_the_rows_are_read(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [planted.Prose().pair()])
    code, out, err = run(capsys, "inspect", "a.jsonl", *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.fixture(scope="module")
def leaking(tmp_path_factory, tiny_bert):
    """A run of 400 rows: 20 hold a query and 10 a document of data.eval, 6 have their positive as a negative."""
    folder, prose = tmp_path_factory.mktemp("leaking"), planted.Prose()
    held = [prose.pair() for _ in range(60)]
    rows = [prose.pair() for _ in range(364)]
    rows += [prose.pair() | {"query": row["query"]} for row in held[:20]]
    rows += [prose.pair() | {"positives": row["positives"]} for row in held[20:30]]
    rows += [row | {"negatives": row["positives"]} for row in (prose.pair() for _ in range(6))]
    write_set(folder / "set", [Record(**row) for row in held])
    write_set(folder / "clean", [Record(**prose.pair()) for _ in range(20)])
    shard([write_jsonl(folder / "rows.jsonl", rows)], folder / "shards", eval_fraction=0)
    values = {
        "output_dir": str(folder / "out"),
        "model": {"path": str(tiny_bert)},
        "data": {"train": str(folder / "shards"), "eval": str(folder / "set")},
        "train": {"batch_size": 16, "max_steps": 1},
    }
    (folder / "run.json").write_text(json.dumps(values))
    return folder


def commands(folder, *more):
    return {
        "trainer": lambda: train_main(["--config", str(folder / "run.json"), "--dry-run", *more]),
        "launch": lambda: launch_main(["run", "--config", str(folder / "run.json"), "--dry-run", *more]),
    }


@pytest.mark.parametrize("command", ["trainer", "launch"])
def test_training_refuses_unless_told_otherwise(leaking, capsys, command):
    assert commands(leaking)[command]() == 2
    shown = capsys.readouterr().err
    assert "data.eval: leakage: 30 of 400 train rows hold a query or relevant document of" in shown
    assert "20 by their query, 10 by a positive" in shown
    assert "data.allow=[leakage]" in shown
    assert "data.train: positives_as_negatives: 6 of 400 rows" in shown
    assert not (leaking / "out").exists()
    assert commands(leaking, "data.allow=[leakage]")[command]() == 2
    shown = capsys.readouterr().err
    assert "leakage:" not in shown and "positives_as_negatives: 6 of 400" in shown
    assert commands(leaking, "data.allow=[leakage,positives_as_negatives]")[command]() == 0
    shown = "".join(capsys.readouterr())
    assert "allowed: leakage: 30 of 400 train rows" in shown
    assert "allowed: positives_as_negatives: 6 of 400 rows" in shown


def test_the_named_mend_mends(leaking, tmp_path, capsys):
    options = ("--exclude", leaking / "set", "--near-duplicates", "0.85", "--eval-fraction", "0")
    code, out, _ = run(capsys, "shard", leaking / "rows.jsonl", "--output", tmp_path / "s", *options)
    assert code == 0
    assert "train rows left out by --exclude: 30" in out
    more = (f"data.train={tmp_path / 's'}", "data.allow=[positives_as_negatives]")
    assert commands(leaking, *more)["launch"]() == 0
    assert "leakage" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("module", [("trainer",), ("launch", "run")])
def test_the_commands_themselves_exit_with_2(leaking, module):
    done = start("-m", *module, "--config", str(leaking / "run.json"))
    assert done.returncode == 2, done.both
    assert "leakage: 30 of 400 train rows" in done.stderr
    assert "Traceback" not in done.both
    assert not (leaking / "out").exists()


def test_evaluation_sets_of_sources_count_too_and_clean_ones_do_not(leaking, capsys):
    own = f"sources.rows.eval={leaking / 'set'}"
    allowed = "data.allow=[positives_as_negatives]"
    clean = f"data.eval={leaking / 'clean'}"
    assert commands(leaking, clean, allowed, own)["trainer"]() == 2
    shown = capsys.readouterr().err
    assert "sources.rows.eval: leakage: 30 of 400" in shown and "data.eval: leakage" not in shown
    assert commands(leaking, clean, allowed)["trainer"]() == 0


def test_what_was_allowed_may_change_when_a_run_is_resumed():
    from trainer.run_dir.record import FREE

    assert "data.allow" in FREE
    (names,) = get_args(DataConfig.model_fields["allow"].annotation)
    assert get_args(names) == NO_TRAINING


def test_a_second_look_is_free_and_other_data_is_another_look(leaking, capsys, monkeypatch):
    commands(leaking)["trainer"]()
    first = capsys.readouterr().err
    monkeypatch.setattr(Rows, "take", lambda *_: pytest.fail("rows were read again"))
    monkeypatch.setattr(gate, "scan", lambda *_: pytest.fail("rows were read again"))
    assert commands(leaking)["launch"]() == 2
    assert capsys.readouterr().err == first
    with pytest.raises(pytest.fail.Exception):
        commands(leaking, "model.query_prompt=other")["launch"]()
    with pytest.raises(pytest.fail.Exception):
        commands(leaking, "model.passage_max_len=20")["launch"]()


def test_what_the_manifest_knows_is_not_scanned(tmp_path, tiny_bert, monkeypatch):
    """Without hard negatives, and with its own eval split, nothing takes the keys of all rows."""
    prose = planted.Prose()
    shard([write_jsonl(tmp_path / "a.jsonl", [prose.pair() for _ in range(300)])], tmp_path / "s", eval_fraction=0.2)
    monkeypatch.setattr(gate, "scan", lambda *_: pytest.fail("all rows were read"))
    reader = gate.Reader(str(tiny_bert), TextRules("", "", 32, 16))
    found = gate.Gate(open_shards(tmp_path / "s"), {"data.eval": str(tmp_path / "s")}, reader).findings()
    assert [one.name for one in found] == ["truncation"]
    path = tmp_path / "a.jsonl"
    shard([path], tmp_path / "near", eval_fraction=0, near_duplicates=0.8)
    monkeypatch.setattr(gate.checks, "near_duplicates", lambda *_: pytest.fail("near duplicates were looked for"))
    gate.Gate(open_shards(tmp_path / "near"), {}, reader).findings()
    assert found[0].count == found[0].of == open_shards(tmp_path / "s").rows("train")


def test_tokens_in_the_shards_are_not_made_again(tmp_path, tiny_bert, monkeypatch):
    """Their counts hold for all rows; at another length a sample is tokenised."""
    prose = planted.Prose()
    path = write_jsonl(tmp_path / "a.jsonl", [prose.pair() for _ in range(60)])
    made = shard([path], tmp_path / "s", eval_fraction=0, tokens=TokenOptions(str(tiny_bert), passage_max_len=20))
    assert made["tokenizer"]["cut_passages"] == 60
    monkeypatch.setattr(gate, "token_lengths", lambda *_: pytest.fail("texts were tokenised"))
    reader = gate.Reader(str(tiny_bert), TextRules("", "", 32, 20))
    (one,) = gate.Gate(open_shards(tmp_path / "s"), {}, reader).findings()
    assert one.text == "60 of 60 passage texts are cut at 20 tokens"
    with pytest.raises(pytest.fail.Exception):
        gate.Gate(open_shards(tmp_path / "s"), {}, gate.Reader(str(tiny_bert), TextRules("", "", 32, 16))).findings()


def test_a_prompt_that_is_not_the_folders_is_told(prompted):
    rules, notes = read_text_rules(prompted, TokenOptions("", "search: "), str)
    assert (rules.query_prompt, rules.passage_prompt) == ("search: ", "passage: ")
    assert notes == ["query_prompt: 'search: ' is asked for, the model folder was trained with 'query: '"]
    assert read_text_rules(prompted, TokenOptions("", "query: "), str)[1] == []


def test_more_rows_than_are_looked_at_are_sampled_and_it_is_said(tmp_path, tiny_bert, monkeypatch):
    prose = planted.Prose()
    rows = [row | {"negatives": row["positives"]} for row in (prose.pair() for _ in range(400))]
    shard([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "s", eval_fraction=0)
    monkeypatch.setattr(gate, "SCAN_ROWS", 250)
    monkeypatch.setattr(gate, "SAMPLE", 210)
    reader = gate.Reader(str(tiny_bert), TextRules("", "", 32, 16))
    exact, cut, _ = gate.Gate(open_shards(tmp_path / "s"), {}, reader).findings()
    assert (exact.name, exact.count, exact.of) == ("positives_as_negatives", 250, 250)
    assert exact.text.endswith("in a sample of 250 of 400 rows")
    assert (cut.name, cut.count, cut.of) == ("truncation", 210, 210)
    assert cut.text.endswith("in a sample of 210 of 400 rows")


words = st.sampled_from(["a", "A ", "b", "c", "d e"])
records = st.lists(
    st.builds(
        lambda query, positives, negatives, score, parent: Record(
            query, positives, negatives, score, metadata={"parent_query": parent} if parent else {}
        ),
        words,
        st.lists(words, min_size=1, max_size=2),
        st.lists(words, max_size=2),
        st.sampled_from([None, None, 0.5]),
        st.none() | words,
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(records)
def test_keys_count_what_comparing_all_texts_counts(rows):
    keys = Keys()
    for row in rows:
        keys.add(row)
    texts = [[normalise(text) for text in row.positives] for row in rows]
    query = [normalise(row.query) for row in rows]
    question = [normalise(row.metadata.get("parent_query", row.query)) for row in rows]
    asked = [(True, row.query) if is_variant(row) else (False, text) for row, text in zip(rows, query)]
    same = [(one, frozenset(answers), row.score) for one, answers, row in zip(asked, texts, rows)]
    count = range(len(rows))
    answers = {q: {text for i in count if question[i] == q for text in texts[i]} for q in question}
    assert keys.duplicates().tolist() == [i for i in count if same[i] in same[:i]]
    assert keys.repeated_queries().tolist() == [i for i in count if query[i] in query[:i]]
    assert keys.equal_texts().tolist() == [i for i in count if query[i] in texts[i]]
    shared = [i for i in count if any(set(texts[i]) & set(texts[j]) for j in range(i))]
    assert keys.shared_positives().tolist() == shared
    wrong = [i for i in count if answers[question[i]] & {normalise(text) for text in rows[i].negatives}]
    assert keys.positives_as_negatives().tolist() == wrong
    half = len(rows) // 2
    later = {text for i in range(half, len(rows)) for text in (query[i], *texts[i])}
    by_query, by_positive = keys.holding(keys.texts(half))
    assert by_query.tolist() == [i for i in count if query[i] in later]
    assert by_positive.tolist() == [i for i in count if later & set(texts[i])]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(1, 800), st.integers(1, 50))
def test_a_sample_is_spread_over_every_source(sizes, size, least):
    rows = {str(i): np.arange(n) * 3 + i for i, n in enumerate(sizes)}
    found = spread(rows, size, least)
    for name, some in found.items():
        assert set(some.tolist()) <= set(rows[name].tolist())
        assert (np.diff(some) > 0).all()
        assert len(some) >= min(least, len(rows[name]))
    total, taken = sum(sizes), sum(map(len, found.values()))
    assert taken == total if total <= size else taken <= size + least * len(sizes)


def test_a_spool_gives_rows_back_by_number():
    spool, rows = Spool(), [Record(f"q{i}", [f"p{i}", "ü"], metadata={"i": i}) for i in range(20)]
    for row in rows:
        spool.add(row.to_json().encode())
    assert spool.take([19, 0, 7, 7]) == [rows[19], rows[0], rows[7], rows[7]]


def test_prompts_in_the_texts():
    rows = [Record(f"query: what is {i}", [f"Abstract: it is {i}"]) for i in range(30)]
    rules = TextRules("query: ", "passage: ", 32, 32)
    (own, guessed) = prompts({"s": rows}, Reader("", rules))
    assert (own.count, guessed.count) == (30, 30)
    assert "begin with their prompt 'query: ' already" in own.text
    assert "begin with 'abstract: '" in guessed.text
    assert prompts({"s": rows[:5]}, None) == []
    of_source = OwnPrompts(query={"s": "find: "}, passage={"s": "Abstract: "})
    for row in rows:
        row.source = "s"
    _, own = prompts({"s": rows}, Reader("", rules, of_source))
    assert "begin with their prompt 'Abstract: ' already" in own.text and own.about == "sources.s.passage_prompt"


def test_the_prompt_of_a_row_in_its_text_names_the_key_of_rows():
    """The more frequent repetition decides the name, among rows with and without a prompt of their own."""
    rules, own = TextRules("query: ", "", 32, 32), OwnPrompts(row_query="{prompt} ", row_passage="prompt")
    rows = [Record(f"find: {i}", [f"it is {i}"], metadata={"prompt": "find:"}) for i in range(20)]
    rows += [Record(f"query: {i}", [f"it was {i}"]) for i in range(9)]
    (found,) = prompts({"s": rows}, Reader("", rules, own))
    assert found.count == 29 and "begin with their prompt 'find: ' already" in found.text
    assert found.about == "data.row_query_prompt"
    assert found.mend == "take it out of the texts, or leave out data.row_query_prompt"
    (found,) = prompts({"s": rows[15:]}, Reader("", rules, own))
    assert found.count == 14 and found.mend == "take it out of the texts, or set model.query_prompt to ''"


def test_languages_of_texts():
    assert language("The captain has been painted because they were not sure about it.") == "en"
    assert language("Le capitaine a été peint parce qu'ils ne savaient pas.") == "fr"
    assert language("日本語の文章はどこにありますか") == "ja"
    assert language("ok") == UNSURE


def test_small_sources_are_told():
    (one,) = imbalance({"large": 9_950, "small": 50}, "mend it")
    assert one.line() == (
        "source_imbalance: 1 of 2 sources hold less than 1 % of the 10,000 rows each: 'small' 50; mend it"
    )
    assert imbalance({"large": 9_900, "small": 100}, "") == imbalance({"alone": 3}, "") == []


def test_a_line_shows_some_rows_only():
    one = Finding("n", "warning", 5, 9, "5 of 9", "mend", "", ("a:1", "x" * 50))
    assert one.line() == f"n: 5 of 9 (a:1, …{'x' * 39} …); mend"


@pytest.mark.parametrize(
    "text, kind",
    [
        ('{"text": "Mould grows.", "page": 3}', "JSON"),
        ('\ufeff [{"type": "text", "text": "Mould grows."}]\n', "JSON"),
        ('["a", "b"]', "JSON"),
        ("<p>Mould grows.</p>", "HTML or XML"),
        ("<!DOCTYPE html><title>Mould", "HTML or XML"),
        ("\n<DIV class='a'>Mould<br>grows", "HTML or XML"),
        ("<p>Mould\n<p>grows", "HTML or XML"),
        ('<?xml version="1.0"?><a/>', "HTML or XML"),
        ("<doc id='1'>Mould grows.</doc>", "HTML or XML"),
        ("&lt;p&gt;Mould grows.&lt;/p&gt;", "HTML or XML"),
        ("{name} is a placeholder", None),
        ("{}", None),
        ("[1] Smith, 1999", None),
        ("[1]", None),
        ("{'a': 1}", None),
        ("3 < 4 and 5 > 2", None),
        ("<name> stands for a name", None),
        ("<p> is the tag of a paragraph", None),
        ("<user@example.org> wrote: <see above>", None),
        ("The tag <b>b</b> is bold.", None),
        ("42", None),
        ('"a text"', None),
        ("null", None),
    ],
)
def test_texts_that_are_markup_as_a_whole(text, kind):
    assert markup_of(text) == kind


def test_markup_is_counted_by_inspect_and_by_the_gate(tmp_path, capsys):
    rows = [{"anchor": f"question {i} of all", "positive": f"an answer to number {i}, in words"} for i in range(60)]
    for i in (3, 7, 11):
        rows[i]["positive"] = json.dumps({"text": f"answer {i}", "page": i})
    rows[20]["positive"] = "<div><p>answer 20</p></div>"
    rows[30]["anchor"] = "<b>question</b> 30"
    rows[40]["negative"] = '[{"text": "x"}]'
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    code, out, _ = run(capsys, "inspect", path, "--json")
    found = [one for one in json.loads(out)["findings"] if one["name"] == "markup"]
    assert code == 0 and [one["count"] for one in found] == [1, 5]
    assert "of 61 passage texts of 'in', 1 are HTML or XML and 4 are JSON as a whole" in found[1]["text"]
    code, _, err = run(capsys, "shard", path, "--output", tmp_path / "s")
    assert code == 0, err
    recorded = open_shards(tmp_path / "s").manifest["findings"]["found"]
    assert {one["name"] for one in recorded} >= {"markup"}


def test_plain_texts_are_no_markup():
    assert markup({"a": [Record("what is {x}", ["<x> is [1]"], ["3 < 4"])]}) == []
