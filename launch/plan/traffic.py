"""Computes the bytes that a step sends, and its time on stated ranks. Pure arithmetic."""

import math
from dataclasses import dataclass

FP32, INT64 = 4, 8
NUMBERS = 6  # that ranks exchange at the start of a step, see trainer.train.step.compute_gradients


@dataclass(frozen=True)
class Share:
    """A rank's part of a global batch."""

    rows: int
    documents: int
    tokens: int

    @property
    def texts(self) -> int:
        return self.rows + self.documents


@dataclass(frozen=True)
class Traffic:
    """The exchange of embeddings of a loss."""

    gathers: bool  # gathers…: see trainer.loss.objective.Objective
    gathers_queries: bool
    gathers_all: bool
    size: int  # numbers of an embedding
    logged: int  # numbers that are summed for the log

    def embeddings(self, shares: list[Share]) -> int:
        """Bytes that a rank sends in a step before the gradients, on a ring; counted like trainer.distributed.collectives."""
        ranks = len(shares)
        others, ring = ranks - 1, 2 * (ranks - 1) / ranks
        sent = others * NUMBERS * INT64 + int(ring * self.logged * INT64)
        if self.gathers:
            most = max(share.documents for share in shares)
            travelling = [share.texts if self.gathers_queries else share.documents for share in shares]
            sent += others * most * 4 * INT64 + others * max(travelling) * self.size * FP32
            sent += int(ring * sum(travelling) * self.size * FP32)
            sent += others * most * 3 * INT64 if self.gathers_all else 0
        return sent


@dataclass(frozen=True)
class Link:
    """The network of a rank."""

    bandwidth: float  # bytes per second that a rank sends
    latency: float  # seconds of one message

    def seconds(self, ranks: int, sent: float, calls: int) -> float:
        """Seconds of `calls` collectives: the messages of a tree for each, and the bytes of a ring."""
        return 0.0 if ranks == 1 else calls * 2 * math.ceil(math.log2(ranks)) * self.latency + sent / self.bandwidth


def gradient_bytes(engine: str, ranks: int, trained: int, every: int, forward_passes: int) -> int:
    """Least bytes of gradients and weights that a rank sends in a step, on a ring.

    trained, every: numbers in the trained parameters and in all. forward_passes: of chunks, backward ones added; under
    ZeRO-3 each pass gathers the weights.
    """
    once = FP32 * (ranks - 1) / ranks
    if engine.startswith("zero3"):
        return int(once * (trained + every * forward_passes))
    return int(once * 2 * trained)  # all-reduce; or reduce-scatter of gradients, all-gather of weights


@dataclass(frozen=True)
class Cost:
    """The cost of one step."""

    compute: float  # seconds of one rank that embeds the whole batch
    pairs_seconds: float  # seconds of one rank that compares all rows and documents
    sent: float  # bytes that are summed over ranks once
    calls: int  # collectives
    embeddings: float  # bytes of the batch's documents

    def seconds(self, ranks: int, batches: float, link: Link) -> float:
        """Seconds of a step with `batches` times the batch."""
        share = (ranks - 1) / ranks
        work = (self.compute * batches + self.pairs_seconds * batches * batches) / ranks
        sent = 2 * share * self.sent + 3 * share * self.embeddings * batches
        return work + link.seconds(ranks, sent, self.calls)


def scaling(cost: Cost, per_node: int, link: Link, rows: int, nodes: list[int]) -> list[dict]:
    """Compares numbers of nodes with one rank: for the same batch, and for a batch that grows with the ranks.

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
