"""Masks of candidates that are no negatives, by the identity of texts and documents."""

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
