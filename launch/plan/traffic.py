"""Bytes that a step's embeddings send. Pure arithmetic, no torch."""

from dataclasses import dataclass

from trainer.distributed.step_row import StepRow
from trainer.loss.exchange import DocumentKeys, DocumentScores

FP32, INT64 = 4, 8  # bytes
KEYS, SCORES = len(DocumentKeys._fields), len(DocumentScores._fields)  # int64 numbers per document


@dataclass(frozen=True)
class Share:
    """A rank's part of a global batch."""

    rows: int
    documents: int
    tokens: int
    squares: int = 0  # sum of the squared lengths of its texts

    @property
    def texts(self) -> int:
        return self.rows + self.documents


def embedding_bytes(loss, logged: int, size: int, shares: list[Share], guide_size: int = 0) -> int:
    """Bytes that a rank sends in a step before the gradients, around a ring; as World counts them.

    loss: a trainer.loss.objective.Objective. logged: numbers summed for the log. size: numbers of an embedding.
    guide_size: of one by the loss's guide.
    """
    ranks = len(shares)
    others, ring = ranks - 1, 2 * (ranks - 1) / ranks
    sent = others * len(StepRow._fields) * INT64 + int(ring * logged * INT64)
    if loss.gathers:
        most = max(share.documents for share in shares)
        travelling = [share.texts if loss.gathers_queries else share.documents for share in shares]
        sent += others * most * KEYS * INT64 + others * max(travelling) * size * FP32
        sent += int(ring * sum(travelling) * size * FP32)
        sent += others * most * SCORES * INT64 if loss.gathers_all else 0
        sent += others * max(travelling) * guide_size * FP32 if loss.gathers_guide else 0
    return sent
