"""InfoNCE in tiles: memory is linear in the batch.

- A similarity matrix of a large batch does not fit in memory, so it exists one tile of rows at a time.
- The forward pass computes the gradient of every tile at once; the backward pass only scales it.
- A `_Block` is one direction: an anchor per local row against all candidates. A group of blocks shares one softmax.
- The first block is always query_to_doc. It has the positive pair, and the statistics are its own.
- Masked candidates get -inf before the softmax, so they get exactly no gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config.sections import SIMILARITIES
from trainer.loss.guide import GuideVectors
from trainer.loss.masks import false_negative_limit

TILE_ELEMENTS = 2**23  # similarities held at once, over all directions of a joint softmax: 32 MiB in fp32

# (start, stop) of local rows -> (rows, n) bool: documents that are no negatives of these rows; and (rows, m) bool or
# None: rows whose queries are none. Fresh tensors: they are overwritten.
Mask = Callable[[int, int], tuple[Tensor, Tensor | None]]


class LossOut(NamedTuple):
    """Sums, not means, over the local rows."""

    loss: Tensor  # scalar
    stats: Tensor  # (5,) named by STATS, no gradient: of query_to_doc, but masked_negatives of every direction


STATS = ("positive_similarity", "negative_similarity", "negatives", "masked_negatives", "correct")


def info_nce(
    queries: Tensor,
    documents: Tensor,
    rows: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    *,
    directions: tuple[str, ...] = ("query_to_doc",),
    joint: bool = False,
    mask: Mask | None = None,
    margin: float | None = None,
    ratio: float | None = None,
    doc_row: Tensor | None = None,
    guide: GuideVectors | None = None,
) -> LossOut:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4), summed over local rows; differentiable once.

    queries: (m, d) and documents: (n, d), positives and negatives, of the whole scope; both get gradients. With
    query_to_doc alone the queries may be the local ones only. rows: (b,) distinct indices into queries of the rows
    whose loss is wanted. target: (b,) index of each row's positive in documents. temperature: positive; a 0-dim tensor
    gets its gradient. doc_row: (n,) index into queries of the row each document belongs to; doc_to_doc needs it.

    directions: the similarities a row's softmax runs over, as in sentence-transformers' MultipleNegativesRankingLoss.
    query_to_doc (always): the query and all documents. query_to_query: the query and the other rows' queries.
    doc_to_query: the positive and all queries. doc_to_doc: the positive and the other rows' documents. joint: one
    softmax over all of them (with all four the improved contrastive loss of GTE, Li et al. 2023, arXiv:2308.03281);
    else one per direction, averaged, for the two directions that have the positive pair.

    Masked candidates are no negatives; the positive pair is never masked. mask: by identity, see duplicate_mask.
    margin, ratio: by score (NV-Retriever, Moreira et al. 2024, arXiv:2407.15831, TopK-MarginPos and TopK-PercPos): a
    candidate with a similarity above positive - margin, or above positive * ratio, counts as a false negative. A
    negative margin keeps candidates up to |margin| above the positive (Qwen3-Embedding, Zhang et al. 2025,
    arXiv:2506.05176, has -0.1). Where the positive's similarity is negative, positive * ratio would be above it: ratio
    then compares with the positive. guide: by the score of another model, see GuideVectors.
    """
    allowed = set(SIMILARITIES) if joint else {"query_to_doc", "doc_to_query"}
    if "query_to_doc" not in directions or not set(directions) <= allowed:
        raise ValueError(f"directions {directions}: query_to_doc and, with joint={joint}, any of {sorted(allowed)}")
    if "doc_to_doc" in directions and doc_row is None:
        raise ValueError("doc_to_doc leaves out a row's own documents: give doc_row")
    task = _Task(rows, target, directions, joint, mask, margin, ratio, doc_row, guide, isinstance(temperature, Tensor))
    return LossOut(*_TiledInfoNCE.apply(queries, documents, temperature, task))


class _Task(NamedTuple):
    """info_nce's arguments that have no gradient."""

    rows: Tensor  # (b,)
    target: Tensor  # (b,)
    directions: tuple[str, ...]
    joint: bool
    mask: Mask | None
    margin: float | None
    ratio: float | None
    doc_row: Tensor | None  # (n,)
    guide: GuideVectors | None
    learned: bool  # the temperature gets a gradient


class _Block(NamedTuple):
    """One direction: the similarities of one anchor per local row with w candidates."""

    anchors: Tensor  # (m, d) queries or (n, d) documents
    anchor_grad: Tensor | None  # same shape, added to; None: no gradient wanted
    index: Tensor  # (b,) the anchor of each local row
    candidates: Tensor  # (w, d): all queries or all documents
    candidate_grad: Tensor | None  # (w, d)
    side: int  # of Mask's two tensors: 0 documents, 1 queries
    own: Tensor | None  # (b,) column of the positive pair: never masked
    owner: Tensor | None  # (w,) local row that a candidate belongs to and is no negative of; -1: none
    guide: tuple[Tensor, Tensor] | None  # the guide's anchors and candidates, (m or n, g) and (w, g)


class _Tile(NamedTuple):
    """Sums over a tile's rows, scalars."""

    loss: Tensor
    temperature_grad: Tensor | float
    masked: list[int]  # masked candidates of each block
    masked_similarity: Tensor  # of the first block
    positive: Tensor  # similarity of the positive pairs
    correct: Tensor  # rows whose positive is the most similar candidate of the first block


class _TiledInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, documents, temperature, task):
        wanted = any(ctx.needs_input_grad)
        query_grad, doc_grad = (torch.zeros_like(x) if wanted else None for x in (queries, documents))
        groups = _groups(queries, documents, query_grad, doc_grad, task)
        count, n, tau = task.rows.numel(), documents.shape[0], float(temperature)
        width = max(sum(block.candidates.shape[0] for block in blocks) for blocks in groups)
        size = max(1, min(count, TILE_ELEMENTS // max(1, width)))
        buffer = queries.new_empty(size * width)
        loss, temperature_grad, positive, correct = queries.new_zeros(4).unbind()
        # the sum of all similarities, without a pass over them
        similarity = (queries @ documents.sum(dim=0))[task.rows].sum()
        masked = first_masked = 0
        for start in range(0, count, size):
            stop = min(count, start + size)
            masks = task.mask(start, stop) if task.mask else (None, None)
            for blocks in groups:
                tile = _tile(blocks, start, stop, buffer, masks, task, tau, share=1 / len(groups))
                loss += tile.loss
                temperature_grad += tile.temperature_grad
                masked += sum(tile.masked)
                if blocks is groups[0]:
                    similarity -= tile.masked_similarity
                    positive += tile.positive
                    correct += tile.correct
                    first_masked += tile.masked[0]
        counts = [queries.new_full((), number) for number in (count * (n - 1) - first_masked, masked)]
        ctx.save_for_backward(query_grad, doc_grad)
        ctx.temperature_grad = temperature_grad.to(temperature) if task.learned else None
        stats = torch.stack([positive, similarity - positive, *counts, correct]).float()
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _):
        grads = (*ctx.saved_tensors, ctx.temperature_grad)
        return *(g * upstream.to(g.device) if need else None for g, need in zip(grads, ctx.needs_input_grad)), None


def _groups(queries, documents, query_grad, doc_grad, task: _Task) -> list[list[_Block]]:
    """Groups of directions that share a softmax. The first block of each group has the positive pair."""
    local = torch.full((queries.shape[0],), -1, device=queries.device)  # (m,) index among the local rows, or -1
    local[task.rows] = torch.arange(task.rows.numel(), device=queries.device)
    local_of_doc = None if task.doc_row is None else local[task.doc_row]  # (n,)
    query, positive = (queries, query_grad, task.rows), (documents, doc_grad, task.target)
    every_doc, every_query = (documents, doc_grad, 0), (queries, query_grad, 1)
    qd = qq = dq = dd = None  # the guide's tables
    if task.guide:
        q, d = task.guide.queries, task.guide.documents
        qd, qq, dq, dd = (q, d), (q, q), (d, q), (d, d)
    blocks = {
        "query_to_doc": _Block(*query, *every_doc, own=task.target, owner=None, guide=qd),
        "query_to_query": _Block(*query, *every_query, own=None, owner=local, guide=qq),
        "doc_to_query": _Block(*positive, *every_query, own=task.rows, owner=None, guide=dq),
        "doc_to_doc": _Block(*positive, *every_doc, own=None, owner=local_of_doc, guide=dd),
    }
    chosen = [block for direction, block in blocks.items() if direction in task.directions]
    return [chosen] if task.joint else [[block] for block in chosen]


def _tile(blocks: list[_Block], start: int, stop: int, buffer: Tensor, masks, task: _Task, tau: float, share: float):
    """Computes one softmax of rows start..stop (t of them) and adds its gradient to the blocks'. buffer: memory for
    the (t, sum of w) logits, reused by every tile."""
    widths = [block.candidates.shape[0] for block in blocks]
    logits = buffer[: (stop - start) * sum(widths)].view(stop - start, sum(widths))
    parts = logits.split(widths, dim=1)  # (t, w) each
    anchors = [block.anchors.index_select(0, block.index[start:stop]) for block in blocks]  # (t, d) each
    for part, block, anchor in zip(parts, blocks, anchors):
        torch.mm(anchor / tau, block.candidates.T, out=part)
    column = blocks[0].own[start:stop, None]  # (t, 1)
    positive = parts[0].gather(1, column)  # (t, 1)
    limit = false_negative_limit(positive, task.margin, task.ratio, tau)
    marks = [_either(g, masks[block.side]) for g, block in zip(_guided(blocks, start, stop, task.guide), blocks)]
    masked, similarities = zip(*(_mask(p, b, m, limit, start, stop) for p, b, m in zip(parts, blocks, marks)))
    tops = [part.amax(dim=1, keepdim=True) for part in parts]
    top = torch.cat(tops, dim=1).amax(dim=1, keepdim=True)  # (t, 1)
    # exp of differences to the row's maximum: finite at any temperature
    mass = logits.sub_(top).exp_().sum(dim=1, keepdim=True)  # (t, 1)
    loss = share * (top - positive + mass.log()).sum()
    # exp, unlike softmax, with its factor on the (rows, d) side of the products: no further pass over the tile
    parts[0].scatter_add_(1, column, -mass)
    factor = share / (mass * tau)
    temperature_grad = 0.0
    for part, block, anchor in zip(parts, blocks, anchors):
        if block.anchor_grad is None:
            continue
        grad = torch.mm(part, block.candidates).mul_(factor)  # (t, d)
        if task.learned:
            temperature_grad -= (grad * anchor).sum() / tau  # sum of d(loss)/d(similarity) x similarity
        # not index_add_, which is several times slower on the CPU
        block.anchor_grad.index_put_((block.index[start:stop],), grad, accumulate=True)
        block.candidate_grad.addmm_(part.T, anchor * factor)
    correct = (positive >= tops[0]).sum()
    return _Tile(loss, temperature_grad, list(masked), similarities[0] * tau, positive.sum() * tau, correct)


def _guided(blocks: list[_Block], start: int, stop: int, guide: GuideVectors | None) -> list[Tensor | None]:
    """Returns for each block (t, w) bool: candidates that the guide finds too similar to be negatives."""
    if guide is None:
        return [None] * len(blocks)
    cosines = [
        anchors.index_select(0, block.index[start:stop]) @ candidates.T
        for block in blocks
        for anchors, candidates in (block.guide,)
    ]
    limit = guide.limit(cosines[0].gather(1, blocks[0].own[start:stop, None]))  # (t, 1)
    return [part > limit for part in cosines]


def _either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.logical_or_(other)


def _mask(logits: Tensor, block: _Block, excluded: Tensor | None, limit: Tensor | None, start: int, stop: int):
    """Writes -inf where a candidate is no negative; returns the number of masked ones and the sum of their logits."""
    if limit is not None:
        above = logits > limit
        excluded = above if excluded is None else above.logical_or_(excluded)
    masked, total = 0, logits.new_zeros(())
    if block.owner is not None:  # a candidate has one owner: w positions, however many rows
        owner = (block.owner - start)[None]
        owned = (owner >= 0) & (owner < stop - start)
        owner = owner.clamp(0, stop - start - 1)
    if excluded is not None:
        if block.own is not None:
            excluded.scatter_(1, block.own[start:stop, None], False)
        if block.owner is not None:  # excluded by definition, not counted as masked
            excluded.scatter_(0, owner, excluded.gather(0, owner) & ~owned)
        masked = int(excluded.count_nonzero())
    if masked:  # often only positives are marked: these passes are skipped then
        total = logits.sum() - logits.masked_fill_(excluded, 0.0).sum()
        logits.masked_fill_(excluded, float("-inf"))
    if block.owner is not None:
        logits.scatter_(0, owner, logits.gather(0, owner).masked_fill(owned, float("-inf")))
    return masked, total
