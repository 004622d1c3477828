"""The queries that choose the best model are not those that report on it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.run_dir.queries import FEW, halves_of, held_out, mean_of, read_values, watched, write_halves, write_values


def judged(count: int, per_document: int = 1) -> dict[str, dict[str, int]]:
    """Queries, so many of which share a relevant document; every one has the same irrelevant one."""
    return {f"q{i}": {f"d{i // per_document}": 1, "common": 0} for i in range(count)}


@given(st.integers(FEW, 400), st.integers(1, 20))
def test_halves_are_disjoint_whole_even_and_share_no_document(count, per_document):
    qrels = judged(count, per_document)
    halves = halves_of([*qrels], qrels)
    assert sorted(halves.choosing + halves.reporting) == sorted(qrels)
    assert not set(halves.choosing) & set(halves.reporting) and not halves.same and halves.grouped
    assert abs(len(halves.choosing) - len(halves.reporting)) <= 2 * per_document
    documents = [{next(iter(qrels[query])) for query in half} for half in halves.sides]
    assert not documents[0] & documents[1]


def test_halves_do_not_depend_on_the_order_of_the_queries():
    qrels = judged(200, 3)
    halves, backwards = halves_of([*qrels], qrels), halves_of([*qrels][::-1], qrels)
    assert set(halves.choosing) == set(backwards.choosing) and halves.choosing != backwards.choosing[::-1][1:]
    assert set(halves.choosing) != set([*qrels][:100]), "drawn by a hash, not the first ones"


def test_queries_that_hang_together_through_many_documents_stay_together():
    qrels = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 1} if i % 4 < 3 else {f"d{i}": 1} for i in range(120)}  # chains of four
    halves = halves_of([*qrels], qrels)
    for i in range(0, 120, 4):
        assert len({f"q{i + k}" in halves.choosing for k in range(4)}) == 1


def test_a_document_of_nearly_all_queries_does_not_leave_one_half_empty():
    qrels = {
        query: documents | {"hub": 1} if i % 10 else documents
        for i, (query, documents) in enumerate(judged(150).items())
    }
    halves = halves_of([*qrels], qrels)
    assert not halves.grouped and len(halves.choosing) == len(halves.reporting) == 75
    assert "share documents" in halves.note("set")


def test_few_queries_are_used_for_both_and_it_is_said():
    qrels = judged(FEW - 1)
    halves = halves_of([*qrels], qrels)
    assert halves.same and halves.choosing == halves.reporting == tuple(qrels)
    assert "99 queries, fewer than 100: the same ones choose" in halves.note("set")
    other = judged(FEW)
    assert halves_of([*other], other).note("set") == "50 queries of set choose the best model, 50 others report on it"


@given(st.lists(st.floats(0, 1), min_size=1), st.randoms(use_true_random=False))
def test_a_mean_does_not_depend_on_the_order(numbers, random):
    values = {f"q{i}": number for i, number in enumerate(numbers)}
    queries = [*values]
    random.shuffle(queries)
    assert mean_of(values, queries) == mean_of(values, [*values]) == pytest.approx(sum(numbers) / len(numbers))


def test_what_is_written_is_read(tmp_path):
    values = {"": {"q1": 1 / 3, 'a "name"\u2028': 0.0}, "general": {"é": 1.0}}
    write_values(tmp_path, 12, values)
    assert read_values(tmp_path, 12) == values and read_values(tmp_path, 13) == {}
    halves = halves_of(["b", "a"], {})
    write_halves(tmp_path, halves)
    written = json.loads((tmp_path / "queries" / "halves.json").read_text())
    assert written == {"choosing": ["b", "a"], "reporting": ["b", "a"]}


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ("MAP", ("", "MAP")),
        ("general/recall@10", ("general", "recall@10")),
        ("a/b/MAP", ("a/b", "MAP")),
        ("train_loss", ("", "nDCG@10")),
    ],
)
def test_the_set_and_the_metric_of_the_verdict(metric, found):
    assert watched(metric) == found


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 150))
def test_queries_that_are_held_out_share_no_document_with_the_others(count, per_document, most):
    qrels = judged(count, per_document)
    most = min(most, count // 2)
    held, grouped = held_out([*qrels], qrels, most)
    assert held <= qrels.keys() and 0 < len(held) <= most
    documents = [{f"d{int(query[1:]) // per_document}" for query in part} for part in (held, qrels.keys() - held)]
    assert not (grouped and documents[0] & documents[1])
    assert grouped or most < 3 * per_document, "groups are taken apart only where they would leave too few"
