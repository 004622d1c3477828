"""Metrics of retrieval: exact search over a set's documents, scored by trec_eval. No torch."""

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet

METRICS = ("nDCG@10", "MRR@10", "MAP", "recall@1", "recall@10", "recall@100")
DEPTH = 1000  # documents kept for each query, as trec_eval does


def rank_documents(queries: np.ndarray, documents: np.ndarray, data: RetrievalSet) -> dict[str, dict[str, float]]:
    """Returns query id -> document id -> score of the DEPTH best documents, by inner product of (q, d) and (n, d).

    Without the documents that the set ignores (BEIR's rule, beir/retrieval/evaluation.py, ignore_identical_ids).
    """
    ignored = data.ignored_documents()
    run: dict[str, dict[str, float]] = {}
    keep = min(DEPTH, documents.shape[0])
    for start in range(0, queries.shape[0], 256):
        scores = queries[start : start + 256] @ documents.T
        for row in range(len(scores)):
            if start + row in ignored:
                scores[row, ignored[start + row]] = -np.inf
        top = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
        for row, columns in enumerate(top):
            query = data.query_ids[start + row]
            hits = (c for c in columns if c != ignored.get(start + row))
            run[query] = {data.doc_ids[c]: float(scores[row, c]) for c in hits}
    return run


def score_run(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns query id -> metric -> value, by trec_eval (ties by document id, descending; linear gain)."""
    import pytrec_eval

    measures = {"ndcg_cut.10", "map", "recall.1,10,100"}
    full = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    # trec_eval has no cut for the reciprocal rank: cut the run instead, in its own order
    cut = {q: dict(sorted(docs.items(), key=lambda d: (d[1], d[0]), reverse=True)[:10]) for q, docs in run.items()}
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
    return {
        query: {
            "nDCG@10": values["ndcg_cut_10"],
            "MRR@10": first[query]["recip_rank"],
            "MAP": values["map"],
            **{f"recall@{k}": values[f"recall_{k}"] for k in (1, 10, 100)},
        }
        for query, values in full.items()
    }


def means(per_query: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([values[name] for values in per_query.values()])) for name in METRICS}


def paired_bootstrap(before: np.ndarray, after: np.ndarray, samples: int = 10_000, seed: int = 0) -> tuple:
    """Returns the 95 % interval of the mean difference over resampled queries (Efron 1979, percentile method)."""
    # scipy.stats.bootstrap draws the same samples, but rounds its quantiles otherwise: the last digits would change
    difference = np.asarray(after) - np.asarray(before)
    rng = np.random.default_rng(seed)
    draws = np.empty(samples)
    for i in range(samples):
        draws[i] = difference[rng.integers(0, len(difference), len(difference))].mean()
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
