"""Exact search over a set's documents."""

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet

DEPTH = 1000  # documents kept for each query, as trec_eval does


def rank_documents(queries: np.ndarray, documents: np.ndarray, data: RetrievalSet) -> dict[str, dict[str, float]]:
    """Returns query id -> document id -> score of the DEPTH best documents, by inner product of (q, d) and (n, d), in
    one process; see rank_set."""
    import torch

    from trainer.distributed.collectives import World
    from trainer.ranking.retrieval import rank_set

    tensors, rows = map(torch.from_numpy, (queries, documents)), torch.arange(len(documents))
    run: dict[str, dict[str, float]] = {}
    for part in rank_set(World(), *tensors, rows, data, torch.device("cpu"), DEPTH):
        run |= part
    return run
