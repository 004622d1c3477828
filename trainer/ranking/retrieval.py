"""The ranking of a retrieval set's documents for its queries."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.distributed.collectives import World
from trainer.ranking.keys import NOTHING, numbers_of, scores_of
from trainer.ranking.search import Pairs, Share, search

Run = dict[str, dict[str, float]]  # query id -> document id -> score


def rank_set(
    world: World,
    queries: Tensor,
    documents: Tensor,
    rows: Tensor,
    data: RetrievalSet,
    device: torch.device,
    depth: int,
) -> Iterator[Run]:
    """Yields the `depth` best documents of some queries at a time, best first, on rank 0; empty runs elsewhere.
    Collective.

    Ties go by document id, descending, as trec_eval has them. Left out is what the set ignores (BEIR's rule,
    beir/retrieval/evaluation.py, ignore_identical_ids). queries: (q, d), the same on every rank. documents: (n, d) of
    this rank. rows: (n,) int64, their positions in data.doc_ids.
    """
    by_id = sorted(range(len(data.doc_ids)), key=data.doc_ids.__getitem__, reverse=True)
    number_of = torch.empty(len(by_id), dtype=torch.int64)
    number_of[torch.tensor(by_id, dtype=torch.int64)] = torch.arange(len(by_id))
    share = Share(documents, number_of[rows])
    for first, keys in search(world, queries, share, depth, device, _ignored(data, number_of)):
        run: Run = {}
        for query, row in zip(data.query_ids[first:], keys.cpu() if world.rank == 0 else ()):
            row = row[row != NOTHING]
            hits = (data.doc_ids[by_id[number]] for number in numbers_of(row).tolist())
            run[query] = dict(zip(hits, scores_of(row).tolist()))
        yield run


def _ignored(data: RetrievalSet, number_of: Tensor) -> Pairs | None:
    pairs = data.ignored_documents()
    if not pairs:
        return None
    return Pairs(torch.tensor([*pairs]), number_of[torch.tensor([*pairs.values()])])
