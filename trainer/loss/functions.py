"""Pair losses: tensors in, tensors out. No process group, no model, no config.

Every loss is a sum over rows (CoSENT: one number for the whole batch); the caller divides by the rows of the global
batch. Similarities are inner products: cosines where the embeddings are normalised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_mse(queries: Tensor, positives: Tensor, scores: Tensor) -> Tensor:
    """Sum over pairs of (cosine - score)^2. (b, d), (b, d), (b,). CosineSimilarityLoss of sentence-transformers."""
    return (F.cosine_similarity(queries, positives) - scores).square().sum()


def cosent(queries: Tensor, positives: Tensor, scores: Tensor, temperature: float | Tensor = 0.05) -> Tensor:
    """CoSENT (Huang et al. 2024, doi:10.1109/TASLP.2024.3402087) of the whole batch, one number: log(1 + sum of
    exp((cos_i - cos_j) / temperature) over pairs with score_i < score_j). (m, d), (m, d), (m,)."""
    cosines = F.cosine_similarity(queries, positives)
    place = "cpu" if cosines.device.type == "mps" else cosines.device  # float64, which MPS lacks
    order = scores.to(place).argsort()
    ranked = scores.to(place)[order]
    learned = temperature.to(place) if isinstance(temperature, Tensor) else temperature
    logits = cosines.to(place).double()[order] / learned
    # of the pairs (i, j): log of the sum over j with a higher score than i, which start where i's ties end
    higher = torch.cat([torch.logcumsumexp(-logits.flip(0), 0).flip(0), logits.new_full((1,), float("-inf"))])
    pairs = logits + higher[torch.searchsorted(ranked, ranked, right=True)]
    return torch.logsumexp(torch.cat([logits.new_zeros(1), pairs]), 0).to(cosines.dtype).to(cosines.device)


def kl(
    queries: Tensor,
    documents: Tensor,
    target: Tensor,
    negative_row: Tensor,
    negative_index: Tensor,
    teacher_positive: Tensor,
    teacher_negative: Tensor,
    temperature: float | Tensor,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Sum over rows of KL(softmax(teacher / teacher_temperature) || softmax(student / temperature)), no factor.

    Over a row's positive and its own hard negatives (Lin et al. 2020, arXiv:2010.11386), any number of them; a row
    without adds 0. queries: (b, d). documents: (n, d). target: (b,) index of each row's positive.
    negative_row, negative_index: (k,) row and document of each hard negative. teacher_*: (b,), (k,) scores.
    """
    positive, negative = own_similarities(queries, documents, target, negative_row, negative_index)
    student = row_log_softmax(positive / temperature, negative / temperature, negative_row)
    teacher = row_log_softmax(
        teacher_positive / teacher_temperature, teacher_negative / teacher_temperature, negative_row
    )
    return sum((t.exp() * (t - s)).sum() for t, s in zip(teacher, student))


def margin_mse(
    queries: Tensor,
    documents: Tensor,
    target: Tensor,
    negative_row: Tensor,
    negative_index: Tensor,
    teacher_positive: Tensor,
    teacher_negative: Tensor,
) -> Tensor:
    """Sum over hard negatives of the squared error of (positive - negative) similarity against the teacher's
    (Hofstätter et al. 2020, arXiv:2010.02666). Arguments as for kl."""
    positive, negative = own_similarities(queries, documents, target, negative_row, negative_index)
    student = positive[negative_row] - negative
    return (student - (teacher_positive[negative_row] - teacher_negative)).square().sum()


def own_similarities(queries, documents, target, negative_row, negative_index) -> tuple[Tensor, Tensor]:
    """(b,) and (k,) inner products of queries with their positives and with their hard negatives."""
    positive = (queries * documents[target]).sum(dim=1)
    return positive, (queries[negative_row] * documents[negative_index]).sum(dim=1)


def row_log_softmax(positive: Tensor, negative: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax over each row's positive, (b,), and the negatives that belong to it, (k,) with row: (k,)."""
    top = positive.detach().scatter_reduce(0, row, negative.detach(), "amax")
    # index_put, unlike index_add, adds in a fixed order on CUDA
    mass = (positive - top).exp().index_put((row,), (negative - top[row]).exp(), accumulate=True)
    log_mass = top + mass.log()
    return positive - log_mass, negative - log_mass[row]


def shorten(embeddings: Tensor, dim: int, normalise: bool) -> Tensor:
    """(b, dim): the first dimensions, at unit length if asked (Matryoshka, Kusupati et al. 2022, arXiv:2205.13147)."""
    return F.normalize(embeddings[:, :dim], dim=1) if normalise else embeddings[:, :dim]


def cosine_of_pairs(query_embeds, positive_embeds, batch):
    """Mean of (cosine - score)^2 over the batch, (m, d) and (m, d); a pair without a score is a positive: 1."""
    scores = torch.nan_to_num(batch.scores, nan=1.0)
    return (F.cosine_similarity(query_embeds, positive_embeds) - scores).square().mean()
