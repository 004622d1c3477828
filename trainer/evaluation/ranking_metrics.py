"""Metrics of rankings, by trec_eval. No torch."""

from collections.abc import Sequence

from trainer.evaluation.metric_names import METRICS, Metric, of_ranking


def score_run(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Returns query id -> metric -> value, by trec_eval (ties by document id, descending; linear gain)."""
    import pytrec_eval

    asked = [of_ranking(name) for name in metrics]
    by_cutoff = {metric.cutoff for metric in asked if _cuts_the_run(metric)}
    full = pytrec_eval.RelevanceEvaluator(qrels, _measures(asked) or {"map"}).evaluate(run)
    first = {k: pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(_first(run, k)) for k in by_cutoff}
    return {
        query: {
            metric.name: first[metric.cutoff][query]["recip_rank"] if _cuts_the_run(metric) else values[_key(metric)]
            for metric in asked
        }
        for query, values in full.items()
    }


def _cuts_the_run(metric: Metric) -> bool:
    """True for the reciprocal rank at a cut-off, which trec_eval lacks: the run is cut instead, in its own order."""
    return metric.kind.cut == "recip_rank" and metric.cutoff is not None


def _measures(asked: Sequence[Metric]) -> set[str]:
    """Returns trec_eval's names, all cut-offs of one measure in one name."""
    cuts: dict[str, set[int]] = {}
    for metric in asked:
        if metric.cutoff is not None and not _cuts_the_run(metric):
            cuts.setdefault(metric.kind.cut, set()).add(metric.cutoff)
    whole = {metric.kind.whole for metric in asked if metric.cutoff is None}
    return whole | {f"{name}.{','.join(map(str, sorted(cutoffs)))}" for name, cutoffs in cuts.items()}


def _key(metric: Metric) -> str:
    """Returns the name of a value in pytrec_eval's answer."""
    return metric.kind.whole if metric.cutoff is None else f"{metric.kind.cut}_{metric.cutoff}"


def _first(run: dict[str, dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Returns the first documents of every ranking, in trec_eval's order."""
    return {
        query: dict(sorted(docs.items(), key=lambda one: (one[1], one[0]), reverse=True)[:count])
        for query, docs in run.items()
    }
