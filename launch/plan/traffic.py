"""What a step sends, and how long it takes on ranks that are stated, not present. Pure arithmetic."""

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
    """A loss's exchange of embeddings. gathers…: see trainer.loss.objective.Objective. size: of an embedding; logged:
    numbers that are summed for the log.
    """

    gathers: bool
    gathers_queries: bool
    gathers_all: bool
    size: int
    logged: int

    def embeddings(self, shares: list[Share]) -> int:
        """Bytes that a rank sends in a step before the gradients, around a ring; as trainer.distributed.collectives counts them."""
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
    """bandwidth: bytes per second that a rank sends; latency: seconds of one message."""

    bandwidth: float
    latency: float

    def seconds(self, ranks: int, sent: float, calls: int) -> float:
        """Of `calls` collectives: a tree's messages for each, and the bytes of a ring."""
        return 0.0 if ranks == 1 else calls * 2 * math.ceil(math.log2(ranks)) * self.latency + sent / self.bandwidth


def gradient_bytes(engine: str, ranks: int, trained: int, every: int, forward_passes: int) -> int:
    """Bytes of gradients and weights that a rank sends in a step, at least, around a ring.

    trained, every: numbers in the trained parameters and in all. forward_passes: of chunks; under ZeRO-3 each of them
    gathers the weights, and each backward pass does so again.
    """
    once = FP32 * (ranks - 1) / ranks
    if engine.startswith("zero3"):
        return int(once * (trained + every * forward_passes))
    return int(once * 2 * trained)  # all-reduce; or reduce-scatter of gradients, all-gather of weights


@dataclass(frozen=True)
class Cost:
    """One step of a run. compute: seconds of a rank that embeds the whole batch alone; pairs_seconds: of one that
    compares all its rows and documents alone; sent: bytes of what is summed over ranks once; calls: collectives;
    embeddings: bytes of the batch's documents.
    """

    compute: float
    pairs_seconds: float
    sent: float
    calls: int
    embeddings: float

    def seconds(self, ranks: int, batches: float, link: Link) -> float:
        """Of a step of `batches` times the batch on so many ranks."""
        share = (ranks - 1) / ranks
        work = (self.compute * batches + self.pairs_seconds * batches * batches) / ranks
        sent = 2 * share * self.sent + 3 * share * self.embeddings * batches
        return work + link.seconds(ranks, sent, self.calls)


def scaling(cost: Cost, per_node: int, link: Link, rows: int, nodes: list[int]) -> list[dict]:
    """A line for every number of nodes, against one rank: with the same batch, and with one that grows with them.

    Efficiency is the share of the time that the ranks would need if nothing were sent and nothing waited. None where a
    rank would have no row.
    """
    alone, found = cost.seconds(1, 1, link), []
    for count in nodes:
        ranks = count * per_node
        same = cost.seconds(ranks, 1, link)
        grown = cost.seconds(ranks, ranks, link)
        found.append(
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
    return found
