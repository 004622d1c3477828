"""Exact search over a set's documents. No torch."""

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet

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
