"""Search logs: the scores are those of the stated rule, worked out by hand, and nothing is left out without a count."""

import csv
import random

import pytest

from tests.unit.data_prep.helpers import read_jsonl, run, write_jsonl


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header.split(","), *rows])
    return path


CLICKS = [
    ("flue", "pipe A", 1, 40),
    ("flue", "pipe B", 3, 30),
    ("Flue ", "pipe A", 2, 10),  # the same query and item, shown elsewhere
    ("flue", "cap", 2, 0),
    ("flue", "stove", 9, 0),
    ("tap", "mixer", 1, 1),
]


def made(tmp_path, capsys, header, rows, *flags):
    path = write_csv(tmp_path / "log.csv", header, rows)
    code, out, err = run(capsys, "logs", path, "--output", tmp_path / "o.jsonl", *flags)
    assert code == 0, err
    return read_jsonl(tmp_path / "o.jsonl"), out, err


def test_clicks_alone_are_weighted_by_their_position(tmp_path, capsys):
    rows, out, err = made(tmp_path, capsys, "query,item,position,count", CLICKS)
    # pipe A: 40 / 1 + 10 / (1/2) = 60; pipe B: 30 / (1/3) = 90; the cap stood above a click, the stove below all
    found = [(row["query"], row["positives"], row["score"], row["metadata"]) for row in rows]
    assert found == [
        ("flue", ["pipe A"], pytest.approx(60 / 90, abs=1e-6), {"clicks": 50}),
        ("flue", ["pipe B"], 1.0, {"clicks": 30}),
        ("flue", ["cap"], 0.0, {"clicks": 0}),
    ]
    assert [row["id"] for row in rows] == ["o:1", "o:2", "o:3"]
    assert "6 rows of 2 queries (no impressions: clicks / theta, theta = max(position^-1, 0.1))" in err
    assert "left out: 1 items without a click that stood below every clicked one" in err
    assert "left out: 1 queries with fewer than 2 clicks (--min-clicks)" in err
    assert "3 records: 2 clicked items, 1 shown without a click" in out


def test_impressions_give_the_corrected_click_through(tmp_path, capsys):
    rows = [
        ("flue", "pipe A", 1, 40, 100),  # 40 / 100
        ("flue", "pipe B", 3, 60, 100),  # 60 / (100 / 3), cut to 1: some clicked twice
        ("flue", "pipe C", 20, 4, 100),  # theta is 0.1 at least: 4 / 10
        ("flue", "cap", 5, 0, 100),  # examined 20 times
        ("flue", "stove", 9, 0, 10),  # examined 1.1 times only
    ]
    header = "query,clicked_item,position,clicks,impressions"
    rows, _, err = made(tmp_path, capsys, header, rows)
    assert [row["score"] for row in rows] == [0.4, 1.0, 0.4, 0.0]
    assert rows[0]["metadata"] == {"clicks": 40, "impressions": 100}
    assert "left out: 1 items examined less than 3 times in expectation (--min-examined)" in err


def test_the_flags_change_the_rule(tmp_path, capsys):
    header = "query,item,position,count"
    rows, _, _ = made(tmp_path, capsys, header, CLICKS, "--eta", "0", "--min-clicks", "1")
    assert [row["score"] for row in rows] == [1.0, 0.6, 0.0, 1.0]  # 50 clicks against 30
    rows, _, err = made(tmp_path, capsys, header, CLICKS, "--rows", "lists", "--positive-score", "0.9")
    assert [(row["positives"], row["negatives"], row["score"]) for row in rows] == [(["pipe B"], ["cap"], None)]
    assert "left out: 1 clicked items that score below 0.9 (--positive-score)" in err
    rows, _, _ = made(tmp_path, capsys, header, CLICKS, "--rows", "lists")
    assert rows[0]["positives"] == ["pipe B", "pipe A"]  # the best first


def test_a_catalogue_gives_the_texts_and_document_ids(tmp_path, capsys):
    catalogue = write_jsonl(
        tmp_path / "c.jsonl", [{"id": 7, "title": "Pipe", "text": "steel"}, {"id": "8", "text": "cap"}]
    )
    log = [("flue", 7, 1, 3), ("flue", 8, 2, 3), ("flue", 9, 3, 1)]
    for rows in ("pairs", "lists"):
        flags = ("--items", catalogue, "--rows", rows)
        found, _, err = made(tmp_path, capsys, "query,item,position,count", log, *flags)
        assert "left out: 1 items that the catalogue lacks (--items)" in err
        assert {doc for row in found for doc in row["doc_ids"]} == {"7", "8"}
        assert {text for row in found for text in row["positives"]} == {"Pipe\nsteel", "cap"}


@pytest.mark.parametrize("rows", ["pairs", "lists"])
@pytest.mark.parametrize("other", ["afco6wid", "aFCO6Wid ", "aFCO6W\u0130d", "\uff41FCO6Wid", "aFCO\u2076Wid"])
def test_an_item_is_its_id_to_the_letter(tmp_path, capsys, rows, other):
    catalogue = write_jsonl(tmp_path / "c.jsonl", [{"id": "aFCO6Wid", "text": "steel pipe"}])
    log = write_jsonl(
        tmp_path / "log.jsonl",
        [{"query": "flue", "item": item, "position": 1, "count": n} for item, n in (("aFCO6Wid", 2), (other, 9))],
    )
    code, _, err = run(
        capsys,
        "logs",
        log,
        "--items",
        catalogue,
        "--rows",
        rows,
        "--output",
        tmp_path / "o.jsonl",
        "--positive-score",
        0.1,
    )
    assert code == 0, err
    (row,) = read_jsonl(tmp_path / "o.jsonl")
    assert (row["positives"], row["doc_ids"]) == (["steel pipe"], ["aFCO6Wid"])
    assert row["metadata"].get("clicks", 2) == 2
    assert "left out: 1 items that the catalogue lacks (--items)" in err
    spelled_otherwise = (
        f"1 items differ from an id of the catalogue in case, width or white space only, such as {other!r}"
    )
    assert (spelled_otherwise in err) == (other != "aFCO6W\u0130d")


def test_a_catalogue_holds_ids_that_differ_in_case(tmp_path, capsys):
    ids = ["x1", "X1", "\uff581", "x\u00b9", " x1", "e\u0301", "\u00e9"]
    catalogue = write_jsonl(tmp_path / "c.jsonl", [{"id": name, "text": f"text of {i}"} for i, name in enumerate(ids)])
    log = write_jsonl(
        tmp_path / "l.jsonl",
        [{"query": "q", "item": name, "position": 1, "count": 2 + i} for i, name in enumerate(ids)],
    )
    code, _, err = run(capsys, "logs", log, "--items", catalogue, "--output", tmp_path / "o.jsonl")
    assert code == 0, err
    rows = read_jsonl(tmp_path / "o.jsonl")
    found = [(row["doc_ids"], row["positives"], row["metadata"]["clicks"]) for row in rows]
    assert found == [([name], [f"text of {i}"], 2 + i) for i, name in enumerate(ids)]


def test_a_file_without_a_column_of_a_log_is_one_problem(tmp_path, capsys):
    log = write_jsonl(tmp_path / "l.jsonl", [{"title": "a", "body": "b"}])
    code, _, err = run(capsys, "logs", log, "--output", tmp_path / "o.jsonl")
    assert code == 2 and "no column of a log (query, item, position, count), but 'title', 'body'" in err


def test_items_that_are_texts_are_equal_in_their_normal_form(tmp_path, capsys):
    log = [("flue", "Pipe A", 1, 2), ("flue", "pipe  a", 1, 3)]
    rows, _, _ = made(tmp_path, capsys, "query,item,position,count", log)
    assert [(row["positives"], row["metadata"]["clicks"]) for row in rows] == [(["Pipe A"], 5)]


def test_rows_of_several_logs_are_added_up_and_their_columns_kept(tmp_path, capsys):
    header = "query,item,position,count,category"
    first = write_csv(tmp_path / "a.csv", header, [("flue", "pipe", 1, 2, "heating"), ("flue", "cap", 1, 1, "")])
    second = write_jsonl(tmp_path / "b.jsonl", [{"query": "FLUE", "item": "pipe", "position": 1, "count": 2}])
    code, _, err = run(capsys, "logs", first, second, "--output", tmp_path / "o.jsonl")
    assert code == 0
    assert "columns that logs have no use for are kept in metadata, of each pair's first row: category" in err
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["metadata"] for row in rows] == [{"category": "heating", "clicks": 4}, {"clicks": 1}]
    assert rows[1]["score"] == 0.25


def test_the_rule_undoes_the_position_bias_of_simulated_users(tmp_path, capsys):
    """Users who look at position k with probability 1/k and click what is relevant: the scores are the relevances
    divided by the best one's, the click-through rates are not."""
    draw = random.Random(0)
    relevance = {"a": 0.9, "b": 0.6, "c": 0.3, "d": 0.0}
    shown, clicks = {}, {}
    for _ in range(30_000):
        order = sorted(relevance, key=lambda item: draw.random() + 2 * relevance[item])  # the best stand last
        for position, item in enumerate(order, 1):
            shown[item, position] = shown.get((item, position), 0) + 1
            clicks[item, position] = clicks.get((item, position), 0) + (draw.random() < relevance[item] / position)
    log = [("q", item, position, clicks[item, position], count) for (item, position), count in shown.items()]
    rows, _, _ = made(tmp_path, capsys, "query,item,position,count,impressions", log)
    scores = {row["positives"][0]: row["score"] for row in rows}
    for item, true in relevance.items():
        assert scores[item] == pytest.approx(true / 0.9, abs=0.03)
    rate = {item: sum(n for (i, _), n in clicks.items() if i == item) / 30_000 for item in relevance}
    assert abs(rate["b"] / rate["a"] - 0.6 / 0.9) > 0.1
    # clicks alone say the same where all were shown equally often
    alone, _, _ = made(tmp_path, capsys, "query,item,position,count", [row[:4] for row in log])
    assert {row["positives"][0]: row["score"] for row in alone} == pytest.approx(scores, abs=0.03)
