"""A user's loss as `package.module:function`: it sees the whole global batch and uses all that it is given."""

import torch.nn.functional as F


def pull_and_push(query_embeds, positive_embeds, batch):
    """Own hard negatives by the teacher's margin, weighted by row id; all negatives and positives for each query."""
    tau, row = batch.temperature, batch.negative_row
    near = (query_embeds * positive_embeds).sum(dim=1)
    far = (query_embeds[row] * batch.negative_embeds).sum(dim=1)
    margin = batch.teacher_positive[row] - batch.teacher_negative
    own = ((1 + batch.row_ids % 3)[row] * F.softplus((far - near[row]) / tau + margin)).sum()
    pushed = [query_embeds @ others.T for others in (batch.negative_embeds, positive_embeds)]
    every = sum(F.softplus((scores - near[:, None]) / tau).sum() for scores in pushed)
    return (own + every / len(near)) / len(near)
