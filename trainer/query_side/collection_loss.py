"""InfoNCE of queries against every vector of a collection, whose vectors are frozen and divided among ranks.

- A query q with positives P(q): the mean over p in P(q) of -log(exp(s_p) / (exp(s_p) + sum of exp(s_j) over j not in
  P(q))), where s is the inner product divided by the temperature. So another positive of the same query is no negative.
- A rank scores all queries of the batch against its share, a tile at a time. It keeps of each query the greatest score,
  the sum of exponentials, and the sum of documents weighted by them: loss and gradient need nothing else.
- Every rank returns the same loss and the same gradient.
- Memory of a rank beside its share: TILE scores, as many numbers of documents, and 8 bytes for each number of a query.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from trainer.distributed.collectives import World

TILE = 2**22  # scores, and numbers of documents, that are held at a time


@dataclass(frozen=True)
class Documents:
    """One rank's share of a collection: vectors that follow each other, so that their numbers do."""

    vectors: Tensor  # (n, d) float32 on the CPU; may be mapped from a file
    first: int  # number of the first vector in the collection

    def rows_of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(pairs,) numbers -> rows in this share, and the places of the pairs that have one."""
        rows = numbers - self.first
        own = ((rows >= 0) & (rows < len(self.vectors))).nonzero()[:, 0]
        return rows[own], own


@dataclass(frozen=True)
class Related:
    """Pairs of a query and a document that is no negative for it."""

    queries: Tensor  # (pairs,) int64, row of the query
    documents: Tensor  # (pairs,) int64, number of the document in the collection
    positive: Tensor  # (pairs,) bool; False: only left out of the negatives

    def of(self, rows: Tensor, count: int) -> "Related":
        """Returns the pairs of some of `count` queries, which get the rows 0 … len(rows) - 1."""
        place = torch.full((count,), -1)
        place[rows] = torch.arange(len(rows))
        kept = place[self.queries] >= 0
        return Related(place[self.queries[kept]], self.documents[kept], self.positive[kept])


def collection_loss(
    world: World, queries: Tensor, documents: Documents, related: Related, temperature: float
) -> Tensor:
    """Returns the mean loss over the queries. Collective; queries and related are the same on every rank.

    queries: (B, d); each has a positive. Products are computed on their device, in their type; sums in float64.
    """
    return _CollectionLoss.apply(queries, world, documents, related, temperature)


class _CollectionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries: Tensor, world: World, documents: Documents, related: Related, temperature: float):
        greatest, total, weighted = _negatives(queries, documents, related, temperature)
        whole = world.gather_rows(greatest[None], [1] * world.size).amax(dim=0)
        total, weighted = (_rescaled(part, greatest - whole) for part in (total, weighted))
        found = _positives(queries, documents, related)
        total, weighted, found = _summed(world, total, weighted, found)
        loss, gradient = _loss_and_gradient(
            queries.double(), whole, total, weighted, found, related.queries[related.positive], temperature
        )
        ctx.save_for_backward(gradient.to(queries.dtype))
        return loss.to(queries.dtype)

    @staticmethod
    def backward(ctx, outer: Tensor):
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None, None, None


def _negatives(
    queries: Tensor, documents: Documents, related: Related, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns of this share's negatives, in float64: (B,) the greatest score, (B,) the sum of exp(score - greatest),
    and (B, d) the sum of documents weighted by it."""
    count, d = queries.shape
    greatest = queries.new_full((count,), torch.finfo(queries.dtype).min).double()
    total, weighted = torch.zeros_like(greatest), torch.zeros_like(queries, dtype=torch.float64)
    rows, own = documents.rows_of(related.documents)
    askers, width = related.queries[own], max(1, TILE // max(count, d))
    for start in range(0, len(documents.vectors), width):
        tile = documents.vectors[start : start + width].to(queries)
        scores = queries @ tile.T / temperature
        here = (rows >= start) & (rows < start + width)
        scores[askers[here].to(scores.device), (rows[here] - start).to(scores.device)] = -torch.inf
        higher = torch.maximum(greatest, scores.amax(dim=1).double())
        shares = (scores - higher[:, None].to(scores)).exp()
        total = _rescaled(total, greatest - higher) + shares.sum(dim=1, dtype=torch.float64)
        weighted = _rescaled(weighted, greatest - higher) + (shares @ tile).double()
        greatest = higher
    return greatest, total, weighted


def _rescaled(sums: Tensor, exponent: Tensor) -> Tensor:
    return sums * exponent.exp().view(-1, *[1] * (sums.dim() - 1))


def _positives(queries: Tensor, documents: Documents, related: Related) -> Tensor:
    """Returns (positives, d) float64: the vectors that this share holds, zeros elsewhere."""
    numbers = related.documents[related.positive]
    found = torch.zeros(len(numbers), queries.shape[1], dtype=torch.float64, device=queries.device)
    rows, own = documents.rows_of(numbers)
    found[own.to(found.device)] = documents.vectors[rows].to(found)
    return found


def _summed(world: World, *parts: Tensor) -> list[Tensor]:
    """Sums tensors over ranks, in one collective."""
    flat = world.sum(torch.cat([part.reshape(-1) for part in parts]))
    return [one.view_as(part) for one, part in zip(flat.split([part.numel() for part in parts]), parts)]


def _loss_and_gradient(
    queries: Tensor,
    greatest: Tensor,
    total: Tensor,
    weighted: Tensor,
    found: Tensor,
    askers: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its (B, d) gradient. found: (positives, d). askers: of each positive, its query's row."""
    askers = askers.to(queries.device)
    counts = torch.bincount(askers, minlength=len(queries))
    assert (counts > 0).all(), "a query of the batch has no positive"
    negatives = greatest + total.log()  # log of the sum of exp over negatives; -inf where there is none
    scores = (queries[askers] * found).sum(dim=1) / temperature
    gap, weight = negatives[askers] - scores, 1 / (counts[askers].double() * len(queries))
    slope = (weight * gap.sigmoid() / temperature)[:, None]
    mean = (weighted / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None])[askers]
    gradient = torch.zeros_like(queries).index_add_(0, askers, slope * (mean - found))
    return (weight * softplus(gap)).sum(), gradient
