"""Every metric of a ranking equals trec_eval's own measure, and the definition written out."""

import numpy as np
import pytest

from tests.unit.trainer.inference.test_metrics import read_trec
from trainer.evaluation.compare import means
from trainer.evaluation.ranking_metrics import score_run

THEIRS = {  # ours -> pytrec_eval's measure, and the key of its answer
    "nDCG": ("ndcg", "ndcg"),
    "nDCG@5": ("ndcg_cut.5", "ndcg_cut_5"),
    "nDCG@37": ("ndcg_cut.37", "ndcg_cut_37"),
    "MRR": ("recip_rank", "recip_rank"),
    "MAP": ("map", "map"),
    "MAP@7": ("map_cut.7", "map_cut_7"),
    "recall@3": ("recall.3", "recall_3"),
    "recall@20": ("recall.20", "recall_20"),
    "precision@1": ("P.1", "P_1"),
    "precision@20": ("P.20", "P_20"),
    "hit@1": ("success.1", "success_1"),
    "success@5": ("success.5", "success_5"),
    "R-precision": ("Rprec", "Rprec"),
}


def a_run(seed=0, queries=12, documents=60):
    """Grades 0 to 2 of some documents, two that no search finds; scores with ties."""
    rng = np.random.default_rng(seed)
    ids = [f"d{i}" for i in range(documents)]
    qrels, run = {}, {}
    for number in range(queries):
        judged = rng.choice(ids, 12, replace=False)
        qrels[f"q{number}"] = {str(doc): int(rng.integers(0, 3)) for doc in judged} | {"lost": 1, str(judged[0]): 1}
        found = rng.choice(ids, 40, replace=False)
        run[f"q{number}"] = {str(doc): float(rng.integers(0, 15)) / 4 for doc in found}
    return qrels, run


def test_every_metric_equals_trec_evals_own_measure():
    import pytrec_eval

    qrels, run = a_run()
    got = score_run(qrels, run, tuple(THEIRS))
    assert list(next(iter(got.values()))) == list(THEIRS), "in the order of the names"
    for name, (measure, key) in THEIRS.items():
        for query, values in pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run).items():
            assert got[query][name] == pytest.approx(values[key], abs=1e-6), (name, query)


def test_the_metrics_by_their_definitions():
    qrels, run = a_run(1)
    got = score_run(qrels, run, ("MRR@4", "MRR@40", "precision@4", "recall@4", "hit@4", "R-precision"))
    seen = set()
    for query, values in got.items():
        right = {doc for doc, grade in qrels[query].items() if grade > 0}
        order = [doc for doc, _ in sorted(run[query].items(), key=lambda one: (one[1], one[0]), reverse=True)]
        first = next((rank for rank, doc in enumerate(order, 1) if doc in right), None)
        hits = len(right.intersection(order[:4]))
        expected = [1 / first if first <= 4 else 0.0, 1 / first, hits / 4, hits / len(right), float(hits > 0)]
        expected.append(len(right.intersection(order[: len(right)])) / len(right))
        assert list(values.values()) == pytest.approx(expected, abs=1e-6)
        seen.add(expected[0] > 0)
    assert seen == {True, False}, "a case of each kind"


@pytest.mark.real_data
def test_trec_evals_own_output(real_data):
    qrels, run, expected = read_trec(real_data / "trec_eval_ref")
    names = {"precision@5": "P_5", "precision@1000": "P_1000", "R-precision": "Rprec", "MAP@15": "map_cut_15"}
    names |= {"nDCG": "ndcg", "nDCG@5": "ndcg_cut_5", "recall@15": "recall_15", "MRR": "recip_rank"}
    averages = means(score_run(qrels, run, tuple(names)))
    for ours, name in names.items():
        assert averages[ours] == pytest.approx(float(expected["all"][name]), abs=1e-4), ours


def test_a_query_that_found_nothing_has_zeros():
    got = score_run({"q": {"d": 1}}, {"q": {}}, ("nDCG@3", "MRR@3", "precision@3", "R-precision"))
    assert set(got["q"].values()) == {0.0}
