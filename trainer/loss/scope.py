"""Definitions of this subject."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trainer.loss.masks import duplicate_mask, row_mask


@dataclass
class _Scope:
    """The embeddings that a loss sees (of all ranks, or of this one) and what is known of them.

    queries: (m, d), of all ranks only where the loss needs them. documents: (n, d), rank after rank, each its positives
    in the order of rows, then its hard negatives. rows, target: (b,) this rank's queries and their positives.
    positives, negatives: indices into documents; own_negatives: this rank's. doc_row: (n,) row of each document.
    doc_keys: (n, 3), see losses.duplicate_mask. facts: (n, 3), see step.Batch.doc_facts_float. share: this rank's of a
    value that every rank of the scope computes. hard_negatives: their number in the global batch. by_row: whether the
    mask must cover rows' queries too.
    """

    queries: Tensor
    documents: Tensor
    rows: Tensor
    target: Tensor
    positives: Tensor
    negatives: Tensor
    own_negatives: Tensor
    doc_row: Tensor
    doc_keys: Tensor
    facts: Tensor
    share: float
    hard_negatives: int
    by_row: bool

    def duplicates(self, batch, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """The mask of losses.info_nce for this rank's rows start..stop."""
        device = self.rows.device
        keys, query = batch.row_keys[start:stop].to(device), batch.row_query[start:stop].to(device)
        documents = duplicate_mask(keys, query, self.doc_keys)
        return documents, row_mask(documents, self.positives) if self.by_row else None


def _own_similarities(scope: _Scope, batch) -> Tensor:
    """STATS where no term is InfoNCE: of this rank's rows with their positives and their own hard negatives."""
    with torch.no_grad():
        queries = scope.queries[scope.rows]
        near = (queries * scope.documents[scope.target]).sum()
        far = (queries[batch.negative_row.to(queries.device)] * scope.documents[scope.own_negatives]).sum()
    return torch.stack([near, far, far.new_tensor(len(scope.own_negatives)), *far.new_zeros(2)])


class _Where:
    """Positions in concatenated documents: blocks are (rows, documents) of each rank, positives before negatives."""

    def __init__(self, blocks: list, device: torch.device):
        self.row_starts = [0, *accumulate(r for r, _ in blocks)]
        starts = [0, *accumulate(n for _, n in blocks)]
        self.positives = [torch.arange(s, s + r, device=device) for s, (r, _) in zip(starts, blocks)]
        self.negatives = [torch.arange(s + r, s + n, device=device) for s, (r, n) in zip(starts, blocks)]
        sizes = torch.tensor([n for _, n in blocks], device=device)
        self.row_start_of_doc = torch.tensor(self.row_starts[:-1], device=device).repeat_interleave(sizes)
