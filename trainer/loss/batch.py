"""One rank's slice of a global batch, as a loss sees it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.loss.exchange import NO_ROW, DocumentKeys, DocumentScores


@dataclass
class Batch:
    """Texts of b rows: b queries, then n = b + k documents: the rows' positives in order, and k hard negatives."""

    row_ids: list[int]  # (b,) in the data
    tokens: list[list[int]]  # (b + n,) token ids of each text
    row_keys: Tensor  # (b, p) int64 keys of all positives of a row and of their ids, padded with -2
    row_query: Tensor  # (b,) int64 key of the query's text
    documents: DocumentKeys  # of n documents
    scores: Tensor  # (b,) float64, nan where the data has none
    teacher_positive: Tensor  # (b,) float64, nan where the data has none
    teacher_negative: Tensor  # (k,) float64, nan where the data has none
    global_rows: int  # rows of the global batch over all ranks
    truncated: int = 0  # texts of this slice
    seed: int = 0  # of this step and rank: fixes dropout, also where a chunk is embedded twice
    source: str = ""  # that every row comes from
    guide_tokens: list[list[int]] | None = None  # (b + n,) of the loss's guide, by its own tokenizer
    prompt_tokens: list[int] | None = None  # (b + n,) of each text, where the pooling leaves them out

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    def prompts_of(self, chunk: list[int]) -> list[int] | None:
        """Tokens of the prompts of a chunk's texts, by their indices; an empty chunk is one token, see chunks.lay."""
        if self.prompt_tokens is None:
            return None
        return [self.prompt_tokens[i] for i in chunk] or [0]

    @property
    def negative_row(self) -> Tensor:
        """(k,) int64 row of each hard negative."""
        return self.documents.row[self.rows :]

    def document_scores(self) -> DocumentScores:
        """Row ids, scores and teacher scores of the n documents."""
        row_id = torch.full((len(self.tokens) - self.rows,), NO_ROW, dtype=torch.int64)
        row_id[: self.rows] = torch.tensor(self.row_ids, dtype=torch.int64)
        score = torch.full((len(row_id),), float("nan"), dtype=torch.float64)
        score[: self.rows] = self.scores
        return DocumentScores(row_id, score, torch.cat([self.teacher_positive, self.teacher_negative]))
