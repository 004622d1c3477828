"""Definitions of this subject."""

import torch
from torch import Tensor


def duplicate_mask(row_keys: Tensor, row_query: Tensor, doc_keys: Tensor) -> Tensor:
    """(b, n) bool: which documents must not be drawn as negatives of which query.

    row_keys: (b, k) int64, keys of all texts and ids that are positives of the row, padded with -2.
    row_query: (b,) int64, key of the query text. doc_keys: (n, 3) int64: text key, document-id key, and the key of the
    query it is a positive of; -1 where there is none. A document is excluded when its text or its id is a positive
    of the row, or when it is a positive of another row with the same query.
    """
    text, doc_id, query = doc_keys.unbind(dim=1)
    # few documents are of interest to any of these rows: compare with those only
    near = (torch.isin(text, row_keys) | torch.isin(doc_id, row_keys) | torch.isin(query, row_query)).nonzero()[:, 0]
    excluded = row_query[:, None] == query[near]
    for column in row_keys.unbind(dim=1):  # k is small (a row has few positives); (b, n, k) at once would not be
        excluded |= (column[:, None] == text[near]) | (column[:, None] == doc_id[near])
    return excluded.new_zeros(row_keys.shape[0], doc_keys.shape[0]).index_copy_(1, near, excluded)


def row_mask(doc_mask: Tensor, positive_of_row: Tensor) -> Tensor:
    """(b, m) bool: a row's query is no negative where its positive is none. positive_of_row: (m,) document index."""
    return doc_mask[:, positive_of_row]
