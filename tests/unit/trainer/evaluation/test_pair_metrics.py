"""Metrics of scored pairs equal scipy's and scikit-learn's; two models compared over the same pairs."""

import numpy as np
import pytest

from trainer.evaluation.compare import compare, means, part_of
from trainer.evaluation.pair_metrics import PairScores, auc, average_precision, pearson, spearman

LABELS = ("spearman", "pearson", "auc", "average_precision")


def sample(seed, size=80, ties=False):
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-1, 1, size)
    scores = np.clip((cosines + rng.normal(0, 0.5, size) + 1) / 2, 0, 1)
    return (cosines.round(1), scores.round(1)) if ties else (cosines, scores)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_equal_scipys(seed, ties):
    from scipy import stats

    cosines, scores = sample(seed, ties=ties)
    assert spearman(cosines, scores) == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-9)
    assert pearson(cosines, scores) == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-9)
    assert abs(spearman(cosines, scores) - pearson(cosines, scores)) > 1e-4, "they are not one number"


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_labels_equal_scikit_learns(seed, ties):
    learn = pytest.importorskip("sklearn.metrics")
    cosines, scores = sample(seed, ties=ties)
    labels = (scores > 0.6).astype(float)
    assert auc(cosines, labels) == pytest.approx(learn.roc_auc_score(labels, cosines), abs=1e-9)
    assert average_precision(cosines, labels) == pytest.approx(learn.average_precision_score(labels, cosines), abs=1e-9)


def test_metrics_of_labels_by_their_definitions():
    """Two positives, three negatives; one pair of equal cosines, one label each."""
    cosines, labels = np.array([0.9, 0.7, 0.7, 0.2, 0.1]), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert auc(cosines, labels) == pytest.approx((0.5 + 1 + 0 + 1) / 6, abs=1e-9)
    assert average_precision(cosines, labels) == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4, abs=1e-9)


def test_a_model_whose_cosines_are_all_equal_correlates_with_nothing():
    cosines, labels = np.ones(4), np.array([0.0, 1.0, 1.0, 0.0])
    values = PairScores(cosines, labels, LABELS).values()
    assert values == pytest.approx({"spearman": 0.0, "pearson": 0.0, "auc": 0.5, "average_precision": 0.5})
    assert all(np.isnan(value) for value in PairScores(cosines, np.ones(4), LABELS).values().values())


def test_two_models_are_compared_over_the_same_pairs():
    cosines, scores = sample(5, size=60)
    labels = (scores > 0.5).astype(float)
    worse = PairScores(np.random.default_rng(0).permutation(cosines), labels, LABELS)
    better = PairScores(cosines, labels, LABELS)
    table = compare(worse, better)
    for name, row in table.items():
        assert row["base"] == means(worse)[name] and row["tuned"] == means(better)[name]
        low, high = row["interval_95"]
        assert 0 < low < row["difference"] < high, name
    same = compare(better, better)
    assert all(row["interval_95"] == [0.0, 0.0] for row in same.values())
    few = compare(part_of(worse, [0, 1, 2]), part_of(better, [0, 1, 2])) if len({*labels[:3]}) > 1 else same
    assert all(np.isfinite(row["interval_95"]).all() for row in few.values()), "resamples of one label do not count"
