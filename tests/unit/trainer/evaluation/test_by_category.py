"""Categories of queries, documents and pairs; a gain on average does not hide a loss."""

import json

import numpy as np
import pytest

from data_prep.reading.categories import Categories
from data_prep.reading.retrieval_sets import load_evaluation, load_set
from data_prep.sharding.build import shard
from trainer.evaluation.by_category import by_category, losing
from trainer.evaluation.compare import compare
from trainer.evaluation.pair_metrics import PairScores

CATEGORIES = Categories("topic", "queries", {"a": [f"q{i}" for i in range(40)], "b": ["q40", "q41", "q42"]}, 1)


def scores(shift_a, shift_b):
    """40 queries of a, 3 of b, and one without a category."""
    rng = np.random.default_rng(0)
    shift = [shift_a] * 40 + [shift_b] * 3 + [0.0]
    return {f"q{i}": {"MAP": 0.5 + s + 0.01 * rng.random(), "MRR": 0.5} for i, s in enumerate(shift)}


def test_a_category_that_loses_while_the_average_gains_is_named():
    base, tuned = scores(0, 0), scores(0.1, -0.2)
    table = by_category(CATEGORIES, tuned, base)
    assert (table["field"], table["without"], list(table["categories"])) == ("topic", 1, ["a", "b"])
    row = table["categories"]["b"]
    assert row["queries"] == 3 and row["comparison"]["MAP"]["difference"] == pytest.approx(-0.2)
    (line,) = losing(table, compare(base, tuned))
    assert line.startswith("topic 'b' loses (3 queries): MAP -0.2000 (-0.2000 … -0.2000; on average +0.0")


def test_no_line_without_a_gain_on_average_or_a_loss_beyond_the_interval():
    base = scores(0, 0)
    for tuned in (scores(-0.1, -0.2), scores(0.1, 0.2), scores(0.1, 0.0)):
        assert losing(by_category(CATEGORIES, tuned, base), compare(base, tuned)) == []
    mixed = scores(0.1, 0)
    mixed["q40"]["MAP"] -= 0.3
    mixed["q41"]["MAP"] += 0.2
    table = by_category(CATEGORIES, mixed, base)
    low, high = table["categories"]["b"]["comparison"]["MAP"]["interval_95"]
    assert low < 0 < high and losing(table, compare(base, mixed)) == []


def test_one_query_has_no_interval():
    one = Categories("topic", "queries", {"a": ["q0"]}, 43)
    table = by_category(one, scores(-0.1, 0), scores(0, 0))
    assert table["categories"]["a"]["comparison"]["MAP"]["interval_95"] is None
    assert losing(table, compare(scores(0, 0), scores(0, 0.9))) == []


def test_categories_of_pairs_and_one_of_equal_scores():
    cosines = np.array([0.1, 0.9, 0.4, 0.5, 0.6])
    pairs = PairScores(cosines, np.array([0.0, 1.0, 0.5, 0.7, 0.7]), ("spearman",))
    table = by_category(Categories("kind", "pairs", {"x": [0, 1, 2], "y": [3, 4]}, 0), pairs)
    assert table["categories"]["x"] == {"pairs": 3, "metrics": {"spearman": pytest.approx(1.0)}}
    assert table["categories"]["y"] == {"pairs": 2, "metrics": None}
    worse = PairScores(cosines[::-1].copy(), pairs.scores, ("spearman",))
    table = by_category(Categories("kind", "pairs", {"y": [3, 4]}, 3), pairs, worse)
    assert table["categories"]["y"] == {"pairs": 2, "comparison": None}
    assert losing(table, compare(worse, pairs)) == []


def write_set(folder, queries=({}, {}), documents=({}, {})):
    folder.mkdir()
    for name, rows in (("queries", queries), ("corpus", documents)):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "text": f"text {i}"} | row) for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels.tsv").write_text("q0\tc0\t1\nq1\tc1\t1\nq1\tc0\t0\n")
    return folder


def test_the_field_of_queries_comes_first_then_that_of_relevant_documents(tmp_path):
    documents = [{"metadata": {"lang": "de"}, "n": 1}, {"metadata": {"lang": ["fr", "it", "fr"]}}]
    folder = write_set(tmp_path / "a", [{"topic": True}, {"metadata": {"topic": 3}}], documents)
    assert load_set(folder).categories is None, "only where they are asked for"
    own = load_set(folder, by="topic").categories
    assert (own.owner, own.members, own.without) == ("queries", {"3": ["q1"], "true": ["q0"]}, 0)
    other = load_set(folder, by="lang").categories
    assert (other.owner, other.members) == ("documents", {"de": ["q0"], "fr": ["q1"], "it": ["q1"]})
    some = load_set(folder, by="n").categories
    assert (some.members, some.without) == ({"1": ["q0"]}, 1), "the document of grade 0 gives none"
    missing = load_set(folder, by="langs")
    assert missing.categories is None and set(missing.fields) == {"topic", "lang", "n"}


def test_empty_values_are_none(tmp_path):
    folder = write_set(tmp_path / "a", [{"topic": " "}, {"topic": None}])
    assert load_set(folder, by="topic").categories is None


def test_an_eval_split_has_its_rows_metadata_and_sources(tmp_path):
    rows = [{"query": f"q{i}", "positives": [f"text {i}"], "topic": "xy"[i % 2]} for i in range(20)]
    rows += [{"query": f"s{i}", "positives": [f"item {i}"], "score": i / 20, "topic": "z"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shard([tmp_path / "rows.jsonl"], tmp_path / "shards", eval_fraction=0.6)
    data = load_evaluation(tmp_path / "shards", by="topic")
    assert set(data.categories.members) == {"x", "y"} and set(data.pairs.categories.members) == {"z"}
    assert data.categories.without == 0 and data.parts == [data, data.pairs]
    assert len(data.pairs.scores) == data.left_out > 1
    by_source = load_evaluation(tmp_path / "shards", by="source").categories
    assert {name: len(of) for name, of in by_source.members.items()} == {"rows": len(data.query_ids)}
