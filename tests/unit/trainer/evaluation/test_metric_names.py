"""One parser of metric names: what it reads, and what it refuses with the list."""

import pytest

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.evaluation.metric_names import METRICS, check_names, measured_on, unmeasured

READ = ["nDCG", "nDCG@5", "MRR", "MRR@100", "MAP", "MAP@3", "recall@20", "precision@1", "hit@1000", "success@7"]
READ += ["R-precision", "spearman", "pearson", "auc", "average_precision"]
PROBLEMS = {
    "recall": "recall: needs a cut-off, as in recall@10",
    "R-precision@5": "R-precision@5: has no cut-off; write R-precision",
    "recall@1001": "recall@1001: the cut-off is a whole number from 1 to 1000",
    "nDCG@0": "nDCG@0: the cut-off is",
    "nDCG@05": "nDCG@05: the cut-off is",
    "nDCG@-1": "nDCG@-1: the cut-off is",
    "nDCG@1.0": "nDCG@1.0: the cut-off is",
    "nDCG@": "nDCG@: the cut-off is",
    "nDCG@\u0665": "the cut-off is",
    "nDCG@99999999999999999999": "the cut-off is",
    "ndgc@5": "'ndgc@5' is no metric. Did you mean 'nDCG@5'? Known are nDCG, nDCG@k, MRR",
    "spearmen": "'spearmen' is no metric. Did you mean 'spearman'?",
    "spearman@5": "'spearman@5' is no metric.",
    "cosine_ndcg@10": "'cosine_ndcg@10' is no metric. Write nDCG@10. Known are",
    "eval_nq-dev_dot_recall@5": "Write recall@5.",
    "cosine_accuracy@3": "Write hit@3.",
    "ndcg_at_10": "Write nDCG@10.",
    "spearman_cosine": "Write spearman.",
    "cosine_ap": "Write average_precision.",
    "bleu@4": "'bleu@4' is no metric. Known are",
    "bootstrap": "'bootstrap' is no metric. Known are",
    "": "'' is no metric.",
    "@5": "'@5' is no metric.",
}


def test_every_known_name_is_read():
    check_names(READ, "--metrics")


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_no_metric_is_refused_with_the_reason(name):
    with pytest.raises(BadInput) as caught:
        check_names([name, "MAP"], "--metrics")
    (problem,) = caught.value.problems
    assert problem.startswith("--metrics: ") and PROBLEMS[name] in problem


def test_every_problem_is_listed():
    with pytest.raises(BadInput) as caught:
        check_names(["MAP", "x", "y@1", "MAP"], "watch.metrics")
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["watch.metrics:"] * 3
    assert caught.value.problems[-1] == "watch.metrics: MAP stands twice"


def ranking(pairs=None):
    return RetrievalSet("r", ["d"], ["t"], ["q"], ["t"], {"q": {"d": 1}}, pairs=pairs)


def scored(*scores):
    return ScoredPairs("s", ["a"], ["b"], [(0, 0)] * len(scores), [*scores])


def test_a_set_measures_what_fits_it_else_the_defaults_of_its_kind():
    names = ["nDCG@5", "pearson"]
    assert measured_on(ranking(), names) == ("nDCG@5",)
    assert measured_on(ranking(), ["pearson"]) == METRICS
    assert measured_on(scored(0.1, 0.5), names) == ("pearson",)
    assert measured_on(scored(0.1, 0.5), ["nDCG@5"]) == ("spearman", "pearson")
    assert measured_on(scored(0, 1), []) == ("spearman", "pearson", "auc", "average_precision")
    assert measured_on(scored(0.1, 1), ["auc"]) == ("spearman", "pearson"), "0.1 is no label"


def test_a_name_that_no_set_measures_is_named():
    assert unmeasured([ranking(), scored(0, 1)], ["MAP", "auc", "spearman"], "--metrics") == []
    assert unmeasured([ranking(scored(0.1, 0.2))], ["MAP", "spearman"], "--metrics") == [], "a split of both kinds"
    assert unmeasured([ranking()], ["spearman"], "--metrics") == [
        "--metrics: spearman is of scored pairs, and no set has scores"
    ]
    (line,) = unmeasured([scored(0.1, 0.2)], ["MAP@5", "pearson"], "--metrics")
    assert line.startswith("--metrics: MAP@5 is of a ranking, and no set has judgements; for scored pairs spearman")
    assert unmeasured([scored(0.1, 1)], ["auc"], "--metrics") == [
        "--metrics: auc needs labels, and the scores of s are not all 0 and 1"
    ]
