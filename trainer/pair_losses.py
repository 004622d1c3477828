"""Losses of finetuner.py that the run file names as functions."""

import torch
import torch.nn.functional as F


def cosine_of_pairs(query_embeds, positive_embeds, batch):
    """Mean of (cosine - score)^2 over the batch, (m, d) and (m, d); a pair without a score is a positive: 1."""
    scores = torch.nan_to_num(batch.scores, nan=1.0)
    return (F.cosine_similarity(query_embeds, positive_embeds) - scores).square().mean()
