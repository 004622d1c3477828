"""InfoNCE over a row's own documents: its positive and its own hard negatives, none of other rows."""

import torch
from torch import Tensor

from trainer.loss.functions import own_similarities, row_log_softmax
from trainer.loss.info_nce import LossOut
from trainer.loss.masks import false_negative_limit


def own_info_nce(
    queries: Tensor,
    documents: Tensor,
    target: Tensor,
    negative_row: Tensor,
    negative_index: Tensor,
    temperature: float | Tensor,
    *,
    excluded: Tensor | None = None,
    margin: float | None = None,
    ratio: float | None = None,
) -> LossOut:
    """Sum over rows of the cross entropy of the positive among the row's own documents; a row without negatives adds 0.

    queries: (b, d). documents: (n, d). target: (b,) index of each row's positive. negative_row, negative_index: (k,)
    row and document of each hard negative. excluded: (k,) bool, hard negatives that are none. margin, ratio: as for
    info_nce. Excluded ones take no part, so they get exactly no gradient.
    """
    positive, negative = own_similarities(queries, documents, target, negative_row, negative_index)  # (b,), (k,)
    taken = torch.ones_like(negative, dtype=torch.bool) if excluded is None else ~excluded
    limit = false_negative_limit(positive.detach(), margin, ratio)
    if limit is not None:
        taken &= negative.detach() <= limit[negative_row]
    row, negative = negative_row[taken], negative[taken]
    log_positive, _ = row_log_softmax(positive / temperature, negative / temperature, row)
    best = positive.detach().scatter_reduce(0, row, negative.detach(), "amax")
    counts = (len(negative), len(negative_row) - len(negative), (positive >= best).sum())
    sums = positive.sum(), negative.sum(), *(positive.new_tensor(float(count)) for count in counts)
    return LossOut(-log_positive.sum(), torch.stack(sums).detach().float())
