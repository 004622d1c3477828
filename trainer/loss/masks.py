"""Masks of candidates that are no negatives: by the identity of texts and documents, and by their similarity."""

import torch
from torch import Tensor


def duplicate_mask(row_keys: Tensor, row_query: Tensor, text: Tensor, document_id: Tensor, query: Tensor) -> Tensor:
    """(b, n) bool: documents that must not be drawn as negatives of a query.

    row_keys: (b, p) int64 and row_query: (b,) int64, see Batch. text, document_id, query: (n,) int64 each, see
    DocumentKeys. A document is excluded when its text or its id is a positive of the row, or when it is a positive of
    another row with the same query.
    """
    # few documents are of interest to any of these rows: compare with those only
    near = (torch.isin(text, row_keys) | torch.isin(document_id, row_keys) | torch.isin(query, row_query)).nonzero()
    near = near[:, 0]  # (candidates,) indices of documents
    excluded = row_query[:, None] == query[near]  # (b, candidates)
    for column in row_keys.unbind(dim=1):  # p is small (a row has few positives); (b, n, p) at once would not be
        excluded |= (column[:, None] == text[near]) | (column[:, None] == document_id[near])
    return excluded.new_zeros(row_keys.shape[0], text.shape[0]).index_copy_(1, near, excluded)


def row_mask(doc_mask: Tensor, positive_of_row: Tensor) -> Tensor:
    """(b, m) bool: a row's query is no negative where its positive is none. positive_of_row: (m,) document index."""
    return doc_mask[:, positive_of_row]


def own_duplicates(row_keys: Tensor, negative_row: Tensor, text: Tensor) -> Tensor:
    """(k,) bool: hard negatives whose text is a positive of their own row. negative_row, text: (k,) int64 each."""
    return (row_keys[negative_row] == text[:, None]).any(dim=1)


def false_negative_limit(
    positive: Tensor, margin: float | None, ratio: float | None, scale: float = 1.0
) -> Tensor | None:
    """Returns the similarity above which a candidate counts as a false negative, see info_nce; None: there is none.

    positive: similarities of the rows' positives, divided by `scale`, of any shape, which the result has as well.
    """
    limits = []
    if margin is not None:
        limits.append(positive - margin / scale)
    if ratio is not None:
        limits.append(torch.where(positive >= 0, positive * ratio, positive))
    return torch.stack(limits).amin(dim=0) if limits else None
