"""One half chooses within the bound, the other reports, and they share no document."""

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.blending.choice import ABOVE, LOSES, MANY, MAY_LOSE, METRIC, Side, choose, gain_kept, refusals, report
from trainer.blending.halves import halves_of
from trainer.blending.rules import Rules
from trainer.evaluation.metric_names import METRICS


def judged(qrels: dict[str, dict[str, int]], name: str = "set") -> RetrievalSet:
    docs = sorted({doc for grades in qrels.values() for doc in grades})
    return RetrievalSet(name, docs, docs, [*qrels], [*qrels], qrels)


def ones(count: int) -> RetrievalSet:
    return judged({f"q{i}": {f"d{i}": 1} for i in range(count)})


def side(count: int, by_share: dict[float, tuple[float, float]]) -> Side:
    """by_share: share -> the value of every query that chooses, and of every one that reports."""
    data = ones(count)
    halves = halves_of(data)
    per_query = {
        share: {q: dict.fromkeys(METRICS, values[q in halves[1]]) for q in data.query_ids}
        for share, values in by_share.items()
    }
    return Side(data, halves, per_query)


def test_halves_are_whole_equal_and_share_no_relevant_document():
    rng = np.random.default_rng(0)
    qrels = {f"q{i}": {f"d{rng.integers(150)}": 1, f"e{rng.integers(90)}": 0, f"f{i}": 1} for i in range(200)}
    data = judged(qrels)
    one, other = halves_of(data)
    assert sorted([*one, *other]) == sorted(qrels)
    relevant = [{doc for query in half for doc, grade in qrels[query].items() if grade > 0} for half in (one, other)]
    assert not relevant[0] & relevant[1]
    largest = max(sum(f"d{d}" in grades for grades in qrels.values()) for d in range(150))
    assert abs(len(one) - len(other)) <= largest, "a group goes to the smaller half"
    shuffled = judged(dict(sorted(qrels.items(), reverse=True)))
    assert halves_of(shuffled) == (one, other), "the order of the files does not matter"
    assert halves_of(data, seed=1) != (one, other)


def test_queries_that_are_linked_through_others_stay_together():
    chain = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 1} for i in range(9)}
    halves = halves_of(judged(chain | {"alone": {"x": 1}}))
    assert sorted(map(len, halves)) == [1, 9]
    loose = {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 0} for i in range(9)}
    assert sorted(map(len, halves_of(judged(loose)))) == [4, 5], "a grade of 0 links nothing"
    with pytest.raises(BadInput, match="set: its 9 queries share their relevant documents"):
        halves_of(judged(chain))


def test_the_best_share_within_the_bound_is_chosen_and_reported_on_the_other_half():
    domain = side(20, {0.0: (0.5, 0.40), 1.0: (0.9, 0.60), 0.5: (0.8, 0.55), 0.3: (0.7, 0.9)})
    general = side(20, {0.0: (0.5, 0.5), 1.0: (0.4, 0.6), 0.5: (0.495, 0.1), 0.3: (0.6, 0.6)})
    assert choose(domain, None, 0.005) == 1.0
    assert choose(domain, general, 0.005) == 0.5, "a loss of the bound itself is allowed"
    assert choose(domain, general, 0.004) == 0.3
    assert choose(domain, general, 0.2) == 1.0
    told = report(domain, general, 0.5, 0.005)
    row = told["domain"]["against_base"][METRIC]
    assert row["base"] == pytest.approx(0.40) and row["chosen"] == pytest.approx(0.55), "nothing of the choosing half"
    assert row["difference"] == pytest.approx(0.15) and row["interval_95"] == pytest.approx([0.15, 0.15])
    assert told["domain"]["against_tuned"][METRIC]["difference"] == pytest.approx(-0.05)
    assert told["general"]["against_base"][METRIC]["difference"] == pytest.approx(-0.4), "a broken bound is shown"
    assert told["gain_kept"] == pytest.approx(0.75)
    refused = {one["share"]: one["refused"] for one in told["shares"]}
    assert refused == {0.0: None, 0.3: None, 0.5: None, 1.0: LOSES}
    assert told["shares"][3]["general"]["change_95"] == pytest.approx([-0.1, -0.1])
    assert told["domain"]["queries_that_choose"] == told["domain"]["queries_that_report"] == 10


def test_of_equal_shares_the_one_next_to_the_base():
    flat = side(8, dict.fromkeys((1.0, 0.4, 0.0, 0.2), (0.5, 0.5)))
    assert choose(flat, None, 0.0) == 0.0 and gain_kept([0.5, 0.5, 0.5]) is None
    assert gain_kept([0.5, 0.6, 0.4]) is None, "a tuned model that lost has no gain to keep"
    lost = side(8, {0.0: (0.5, 0.5), 1.0: (0.1, 0.1)})
    assert refusals(lost, [1.0, 0.0], 0.0) == {0.0: None, 1.0: LOSES}, "the base is always allowed"


def test_a_share_above_a_refused_one_is_refused_whatever_it_shows():
    general = side(20, {0.0: (0.5, 0.5), 0.2: (0.5, 0.5), 0.4: (0.45, 0.5), 1.0: (0.9, 0.9)})
    assert refusals(general, [0.0, 1.0, 0.2, 0.4], 0.005) == {0.0: None, 0.2: None, 0.4: LOSES, 1.0: ABOVE}
    domain = side(20, {0.0: (0.5, 0.5), 0.2: (0.6, 0.5), 0.4: (0.7, 0.5), 1.0: (0.9, 0.9)})
    assert choose(domain, general, 0.005) == 0.2


@pytest.mark.parametrize(("choosing", "expected"), [(MANY - 1, MAY_LOSE), (MANY, None)])
def test_few_general_queries_must_hold_the_bound_with_their_intervals_lower_end(choosing, expected):
    """The mean does not move, but single queries do."""
    general = side(2 * choosing, {0.0: (0.5, 0.5), 0.5: (0.5, 0.5)})
    for number, query in enumerate(general.halves[0][: choosing // 2 * 2]):
        general.by_share[0.5][query][METRIC] += 0.3 if number % 2 else -0.3
    assert general.mean(0.5, 0) == pytest.approx(0.5)
    assert refusals(general, [0.0, 0.5], 0.005)[0.5] == expected


def test_shares_and_bounds_that_are_none_are_refused_together():
    with pytest.raises(BadInput) as caught:
        Rules([0.5, -0.1, float("nan"), 1.5], most_lost=float("nan"))
    assert len(caught.value.problems) == 4
    assert Rules([0.5, 0.5, 0.2]).measured == [0.0, 1.0, 0.2, 0.5]
    assert Rules().measured == [0.0, 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
