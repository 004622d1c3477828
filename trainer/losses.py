"""Losses: tensors in, tensors out. No process group, no model, no config."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LossOut(NamedTuple):
    """loss: sum (not mean) over the given queries, scalar. stats: (5,) sums with the names in STATS, no gradient."""

    loss: Tensor
    stats: Tensor


STATS = ("positive_similarity", "negative_similarity", "negatives", "masked_negatives", "correct")


def info_nce(
    queries: Tensor, documents: Tensor, target: Tensor, excluded: Tensor | None, temperature: float
) -> LossOut:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4), summed over queries.

    queries: (b, d). documents: (n, d), the positives and negatives of the whole scope. target: (b,) index of each
    query's positive. excluded: (b, n) bool, documents that are no negatives of a query (duplicates of its positives);
    a target is never excluded. Similarities are inner products: cosines where the embeddings are normalised.
    The caller divides by the number of queries of the whole global batch, over all ranks.
    """
    similarity = queries @ documents.T  # (b, n)
    is_target = F.one_hot(target, documents.shape[0]).bool()
    # the similarity matrix is (b, n): logits, masks and statistics below are of that size too
    logits = similarity / temperature
    excluded = torch.zeros_like(is_target) if excluded is None else excluded & ~is_target
    logits = logits.masked_fill(excluded, float("-inf"))
    loss = F.cross_entropy(logits.float(), target, reduction="sum")
    with torch.no_grad():
        negative = ~(is_target | excluded)
        stats = torch.stack(
            [
                similarity[is_target].sum(),
                similarity[negative].sum(),
                negative.sum(),
                excluded.sum(),
                (logits.argmax(dim=1) == target).sum(),
            ]
        )
    return LossOut(loss, stats.float())


def duplicate_mask(row_keys: Tensor, row_query: Tensor, doc_keys: Tensor) -> Tensor:
    """(b, n) bool: which documents must not be drawn as negatives of which query.

    row_keys: (b, k) int64, keys of all texts and ids that are positives of the row, padded with -2.
    row_query: (b,) int64, key of the query text. doc_keys: (n, 3) int64: text key, document-id key, and the key of the
    query it is a positive of; -1 where there is none. A document is excluded when its text or its id is a positive
    of the row, or when it is a positive of another row with the same query.
    """
    text, doc_id, query = doc_keys.unbind(dim=1)
    excluded = row_query[:, None] == query[None]
    for column in row_keys.unbind(dim=1):  # k is small (a row has few positives); (b, n, k) at once would not be
        excluded |= (column[:, None] == text[None]) | (column[:, None] == doc_id[None])
    return excluded
