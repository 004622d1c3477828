"""Definitions of this subject."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """A rank's slice of one global batch. Texts: b queries, then b positives (one each, in order), then k negatives.

    tokens: token ids of each text. row_keys, row_query, doc_keys: see losses.duplicate_mask (documents are the texts
    after the queries). negative_row: (k,) which row each hard negative belongs to. scores, teacher_positive: (b,),
    teacher_negative: (k,), nan where the data has none. global_rows: rows of the whole global batch over all ranks.
    """

    row_ids: list[int]
    tokens: list[list[int]]
    row_keys: Tensor
    row_query: Tensor
    doc_keys: Tensor
    negative_row: Tensor
    scores: Tensor
    teacher_positive: Tensor
    teacher_negative: Tensor
    global_rows: int
    truncated: int = 0
    seed: int = 0  # of this step and rank: fixes dropout, also where a chunk is embedded twice
    source: str = ""

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    def doc_facts_int(self) -> Tensor:
        """(documents, 4) int64: doc_keys, and the row in this slice that the document belongs to."""
        row = torch.cat([torch.arange(self.rows), self.negative_row])
        return torch.cat([self.doc_keys, row[:, None]], dim=1)

    def doc_facts_float(self) -> Tensor:
        """(documents, 3) float64: row id and score of the row (nan for hard negatives), teacher score."""
        facts = torch.full((len(self.tokens) - self.rows, 3), float("nan"), dtype=torch.float64)
        facts[: self.rows, 0] = torch.tensor(self.row_ids, dtype=torch.float64)
        facts[: self.rows, 1] = self.scores
        facts[:, 2] = torch.cat([self.teacher_positive, self.teacher_negative])
        return facts
