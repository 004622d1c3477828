"""Losses: tensors in, tensors out. No process group, no model, no config."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ELEMENTS = 2**23  # similarities held at once: 32 MiB in fp32

# (start, stop) of query rows -> (stop - start, n) bool: documents that are no negatives of these queries
Mask = Callable[[int, int], Tensor]


class LossOut(NamedTuple):
    """loss: sum (not mean) over the given queries, scalar. stats: (5,) sums with the names in STATS, no gradient."""

    loss: Tensor
    stats: Tensor


STATS = ("positive_similarity", "negative_similarity", "negatives", "masked_negatives", "correct")


def info_nce(queries: Tensor, documents: Tensor, target: Tensor, mask: Mask | None, temperature: float) -> LossOut:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4), summed over queries; differentiable once.

    queries: (b, d). documents: (n, d), the positives and negatives of the whole scope. target: (b,) index of each
    query's positive. mask: which documents are no negatives of which query (duplicates of its positives); a target is
    never masked. Similarities are inner products: cosines where the embeddings are normalised. The caller divides by
    the number of queries of the whole global batch, over all ranks.

    The (b, n) similarities exist one tile of rows at a time, and the gradient is made in the same pass: memory is
    linear in the batch.
    """
    return LossOut(*_TiledInfoNCE.apply(queries, documents, target, mask, temperature))


class _TiledInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, documents, target, mask, temperature):
        count, n = queries.shape[0], documents.shape[0]
        query_grad, doc_grad = torch.empty_like(queries), torch.zeros_like(documents)
        loss = queries.new_zeros(())
        stats = queries.new_zeros(len(STATS), dtype=torch.float32)
        rows = max(1, min(count, TILE_ELEMENTS // max(1, n)))
        for start in range(0, count, rows):
            stop = min(count, start + rows)
            excluded = mask(start, stop) if mask else None
            tile_loss, tile_stats, weights = _tile(
                queries[start:stop], documents, target[start:stop], excluded, temperature
            )
            loss += tile_loss
            stats += tile_stats
            torch.mm(weights, documents, out=query_grad[start:stop])
            doc_grad.addmm_(weights.T, queries[start:stop])
        ctx.save_for_backward(query_grad, doc_grad)
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _):
        query_grad, doc_grad = ctx.saved_tensors
        return query_grad * upstream, doc_grad * upstream, None, None, None


def _tile(queries: Tensor, documents: Tensor, target: Tensor, excluded: Tensor | None, temperature: float):
    """Loss sum, statistics and d(loss)/d(similarity) of a tile of queries; one (rows, n) buffer, reused in place."""
    scores = queries @ documents.T  # similarities, then logits, then softmax, then the gradient
    column = target[:, None]
    positive = scores.gather(1, column)
    total = scores.sum()
    masked, masked_total = 0, scores.new_zeros(())
    if excluded is not None:
        excluded.scatter_(1, column, False)
        masked = excluded.sum()
        masked_total = scores[excluded].sum()
        scores.masked_fill_(excluded, float("-inf"))
    top = scores.amax(dim=1, keepdim=True)
    correct = (positive >= top).sum()
    # exp of differences to the row's maximum: finite at any temperature
    scores.sub_(top).div_(temperature).exp_()
    mass = scores.sum(dim=1, keepdim=True)
    loss = (mass.log() + (top - positive) / temperature).sum()
    scores.div_(mass)
    scores.scatter_add_(1, column, torch.full_like(positive, -1.0))
    scores.div_(temperature)
    negatives = scores.numel() - scores.shape[0] - masked
    values = (positive.sum(), total - positive.sum() - masked_total, negatives, masked, correct)
    stats = torch.stack([torch.as_tensor(value, device=scores.device, dtype=torch.float32) for value in values])
    return loss, stats, scores


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
