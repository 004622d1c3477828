"""The embeddings that a loss compares, and the position of every rank's texts among them."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trainer.distributed.device import send
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys, DocumentScores
from trainer.loss.functions import own_similarities
from trainer.loss.guide import GuideVectors
from trainer.loss.masks import duplicate_mask, own_duplicates, row_mask


@dataclass
class Scope:
    """Embeddings that a loss sees, of all ranks or of this one, and the facts about their n documents, which stand
    rank after rank: each rank's positives in the order of its rows, then its hard negatives."""

    queries: Tensor  # (m, d), of all ranks only where the loss needs them
    documents: Tensor  # (n, d)
    rows: Tensor  # (b,) this rank's rows: indices into queries
    target: Tensor  # (b,) their positives: indices into documents
    positives: Tensor  # indices into documents, of all ranks in the scope
    negatives: Tensor  # indices into documents, of all ranks in the scope
    own_negatives: Tensor  # (k,) this rank's
    doc_row: Tensor  # (n,) row of each document: index into queries of the whole scope
    keys: DocumentKeys
    scores: DocumentScores
    share: float  # this rank's share of a value that every rank of the scope computes
    hard_negatives: int  # in the global batch
    by_row: bool  # the mask covers rows' queries too
    guide: GuideVectors | None = None  # of this rank's texts alone where the loss compares a row's own only

    def own_duplicates(self, batch: Batch) -> Tensor:
        """(k,) bool mask of own_info_nce."""
        device = self.rows.device
        keys, row = send(batch.row_keys, device), send(batch.negative_row, device)
        return own_duplicates(keys, row, self.keys.text[self.own_negatives])

    def own_excluded(self, batch: Batch, duplicates: bool) -> Tensor | None:
        """(k,) bool: hard negatives that are none; None: all are. duplicates: those of the row's positives count."""
        marks = [self.own_duplicates(batch)] if duplicates else []
        marks += [self.own_guided(batch)] if self.guide else []
        return torch.stack(marks).any(dim=0) if marks else None

    def own_guided(self, batch: Batch) -> Tensor:
        """(k,) bool: hard negatives that the guide finds too similar to their row's query."""
        row = send(batch.negative_row, self.rows.device)
        own = torch.arange(len(self.guide.documents), device=row.device).split([batch.rows, len(row)])
        positive, negative = own_similarities(self.guide.queries, self.guide.documents, own[0], row, own[1])
        return negative > self.guide.limit(positive)[row]

    def duplicates(self, batch: Batch, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Mask of info_nce for this rank's rows start..stop."""
        device = self.rows.device
        row_keys, row_query = send(batch.row_keys[start:stop], device), send(batch.row_query[start:stop], device)
        documents = duplicate_mask(row_keys, row_query, self.keys.text, self.keys.document_id, self.keys.query)
        return documents, row_mask(documents, self.positives) if self.by_row else None


def own_statistics(scope: Scope, batch: Batch) -> Tensor:
    """(5,) STATS without InfoNCE: of this rank's rows with their positives and their own hard negatives."""
    with torch.no_grad():
        queries = scope.queries[scope.rows]
        near = (queries * scope.documents[scope.target]).sum()
        far = (queries[send(batch.negative_row, queries.device)] * scope.documents[scope.own_negatives]).sum()
    return torch.stack([near, far, far.new_full((), len(scope.own_negatives)), *far.new_zeros(2)])


class Positions:
    """Positions of each rank's texts in the concatenated documents."""

    def __init__(self, blocks: list[tuple[int, int]], device: torch.device):
        """blocks: (rows, documents) of each rank."""
        self.row_starts = [0, *accumulate(r for r, _ in blocks)]
        starts = [0, *accumulate(n for _, n in blocks)]
        self.positives = [torch.arange(s, s + r, device=device) for s, (r, _) in zip(starts, blocks)]
        self.negatives = [torch.arange(s + r, s + n, device=device) for s, (r, n) in zip(starts, blocks)]
        sizes = torch.tensor([n for _, n in blocks])
        self.row_start_of_doc = send(torch.tensor(self.row_starts[:-1]).repeat_interleave(sizes), device)  # (n,)
