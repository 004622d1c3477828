"""Bytes that a step sends, and its seconds on ranks that are stated, not present. Pure arithmetic, no torch."""

import math
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

    @property
    def texts(self) -> int:
        return self.rows + self.documents


def embedding_bytes(loss, logged: int, size: int, shares: list[Share]) -> int:
    """Bytes that a rank sends in a step before the gradients, around a ring; as World counts them.

    loss: a trainer.loss.objective.Objective. logged: numbers summed for the log. size: numbers of an embedding.
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
    return sent


@dataclass(frozen=True)
class Link:
    """A rank's connection to the others."""

    bandwidth: float  # bytes per second that a rank sends
    latency: float  # seconds of one message

    def seconds(self, ranks: int, sent: float, calls: int) -> float:
        """Seconds of `calls` collectives: the messages of a tree for each, and the bytes of a ring."""
        return 0.0 if ranks == 1 else calls * 2 * math.ceil(math.log2(ranks)) * self.latency + sent / self.bandwidth


def gradient_bytes(engine: str, ranks: int, trained: int, every: int, forward_passes: int) -> int:
    """Least bytes of gradients and weights that a rank sends in a step, around a ring.

    trained, every: numbers in the trained parameters and in all. forward_passes: of chunks. Under ZeRO-3 each of them
    gathers the weights, and each backward pass does so again.
    """
    once = FP32 * (ranks - 1) / ranks
    if engine.startswith("zero3"):
        return int(once * (trained + every * forward_passes))
    return int(once * 2 * trained)  # all-reduce; or reduce-scatter of gradients, all-gather of weights


@dataclass(frozen=True)
class Cost:
    """One step of a run."""

    compute: float  # seconds of a rank that embeds the whole batch alone
    pairs_seconds: float  # seconds of a rank that compares all rows and documents alone
    sent: float  # bytes of what is summed over ranks once
    calls: int  # collectives
    embeddings: float  # bytes of the embeddings of the batch's documents

    def seconds(self, ranks: int, batches: float, link: Link) -> float:
        """Seconds of a step of `batches` times the batch on `ranks` ranks."""
        share = (ranks - 1) / ranks
        work = (self.compute * batches + self.pairs_seconds * batches * batches) / ranks
        sent = 2 * share * self.sent + 3 * share * self.embeddings * batches
        return work + link.seconds(ranks, sent, self.calls)


def scaling(cost: Cost, per_node: int, link: Link, rows: int, nodes: list[int]) -> list[dict]:
    """Returns a line for every number of nodes: with the same batch, and with one that grows with them.

    Efficiency is the ideal time, without sending and waiting, as a share of the time. None if a rank has no row.
    """
    alone, table = cost.seconds(1, 1, link), []
    for count in nodes:
        ranks = count * per_node
        same = cost.seconds(ranks, 1, link)
        grown = cost.seconds(ranks, ranks, link)
        table.append(
            {
                "nodes": count,
                "ranks": ranks,
                "same_batch_seconds": same if rows >= ranks else None,
                "same_batch_efficiency": alone / ranks / same if rows >= ranks else None,
                "grown_batch": rows * ranks,
                "grown_batch_seconds": grown,
                "grown_batch_efficiency": cost.seconds(1, ranks, link) / ranks / grown,
            }
        )
    return table
