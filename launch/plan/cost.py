"""Seconds of a step, term by term. Pure arithmetic: no torch, no files.

- A rank embeds its texts in chunks. It keeps what the backward pass needs of `micro_batch_tokens` tokens, and embeds
  the other texts a second time (trainer/train/step.py).
- A pass takes its matrix products and what it moves through memory, one after the other. A product takes the longer of
  its operations and its bytes: narrow ones (adapters) are bound by the memory.
- A GPU works while the next operations are started, and waits where starting them takes longer.
- Nothing of the traffic is hidden: gradients travel after the last backward pass, ZeRO-3 gathers its weights in the
  stream that computes (`overlap_comm: false`).
"""

import math
from dataclasses import asdict, dataclass, fields

from launch.plan.hardware import Hardware, Link, Rates
from trainer.diagnosis.profile import Effort, Profile

FP32 = 4
# Bytes per trained number: AdamW reads weight, gradient and moments and writes all but the gradient; the norm reads the
# gradient; clipping reads and writes it.
UPDATE = 28 + 4 + 8


@dataclass(frozen=True)
class Load:
    """The texts of the busiest rank in a step."""

    tokens: float
    squares: float  # sum of the squared lengths of the texts
    rows: float
    documents: float  # that a row is compared with: of all ranks


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model that decide the traffic and the update."""

    trained: int  # numbers
    weight_bytes: int  # of all weights as they are stored
    gathered_bytes: int  # the same as ZeRO-3 gathers them: in the dtype of the products where that rounds nothing more
    tensors: int  # tensors that ZeRO-3 divides, each gathered in every pass
    attention: int  # see trainer.diagnosis.footprint.Footprint
    size: int  # of an embedding


@dataclass(frozen=True)
class Chunks:
    """The way a rank's tokens go through the model."""

    tokens: float
    kept: float  # tokens whose activations are kept
    chunk: int  # tokens of a chunk

    @property
    def more(self) -> float:
        """Tokens that are embedded twice."""
        return self.tokens - self.kept

    @property
    def share_twice(self) -> float:
        return self.more / self.tokens

    @property
    def kept_passes(self) -> int:
        return math.ceil(self.kept / self.chunk)

    @property
    def more_passes(self) -> int:
        return math.ceil(self.more / self.chunk)

    @property
    def forward_passes(self) -> int:
        return self.kept_passes + 2 * self.more_passes

    @property
    def passes(self) -> int:
        """Forward and backward passes."""
        return self.forward_passes + self.kept_passes + self.more_passes


@dataclass(frozen=True)
class Seconds:
    """The terms of a step."""

    compute: float  # every text forward and backward once, and the loss
    twice: float  # the second forward pass of texts whose activations were not kept
    recompute: float  # blocks computed again in the backward pass
    communication: float
    update: float
    transfers: float  # between device and host, where state is offloaded

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in TERMS)

    def shown(self) -> dict[str, float]:
        return asdict(self) | {"total": self.total}


TERMS = tuple(field.name for field in fields(Seconds))


def effort_seconds(effort: Effort, tokens: float, passes: int, squares: float, rates: Rates, rate: float) -> float:
    """Seconds of a pass over `tokens` tokens in `passes` chunks. squares: attention's operations. rate: of products."""
    if not passes:
        return 0.0
    each = tokens / passes
    work = sum(p.count * max(p.operations * each / rate, p.moved.at(each) / rates.memory) for p in effort.products)
    work = passes * (work + effort.moved.at(each) / rates.memory) + squares / rate
    starting = passes * effort.started * rates.started
    return max(work, starting) if rates.at_once else work + starting


def embedding_seconds(
    plain: Profile, recomputed: Profile | None, chunks: Chunks, load: Load, sizes: Sizes, rates: Rates, precision: str
) -> tuple[float, float, float]:
    """Returns the seconds of all passes, of the texts that are embedded twice, and of recomputation."""
    rate = rates.products(precision)
    once = chunks.kept_passes + chunks.more_passes
    attention = 4.0 * sizes.attention * load.squares
    forward = effort_seconds(plain.forward, chunks.tokens, once, attention, rates, rate)
    backward = effort_seconds(plain.backward, chunks.tokens, once, 2 * attention, rates, rate)
    more = attention * chunks.share_twice
    twice = effort_seconds(plain.forward, chunks.more, chunks.more_passes, more, rates, rate)
    again = 0.0
    if recomputed:
        both = effort_seconds(recomputed.backward, chunks.tokens, once, 3 * attention, rates, rate)
        again = max(0.0, both - backward)
    # similarities of the loss and both of their gradients, in fp32
    loss = 6.0 * load.rows * load.documents * sizes.size / rates.single
    return forward + backward + loss, twice, again


@dataclass(frozen=True)
class Traffic:
    """The messages that a rank sends in a step."""

    embeddings: float  # bytes
    gradients: float  # bytes; under ZeRO-1 and 2 with the updated weights
    weights: float  # bytes that ZeRO-3 gathers
    calls: int  # collectives of trainer.distributed.collectives
    own: int  # collectives of DeepSpeed

    @property
    def sent(self) -> float:
        return self.embeddings + self.gradients + self.weights


def communication_seconds(traffic: Traffic, hardware: Hardware, nodes: int, per_node: int) -> float:
    """Seconds of the bytes of a ring over all ranks, at its slowest link, and of a tree's messages per collective."""
    if nodes * per_node == 1:
        return 0.0
    used: list[tuple[Link, int]] = [(hardware.within, per_node)] if per_node > 1 else []
    used += [(hardware.between, nodes)] if nodes > 1 else []
    messages = sum(2 * math.ceil(math.log2(count)) * link.latency for link, count in used)
    return (traffic.calls + traffic.own) * messages + traffic.sent / min(link.bandwidth for link, _ in used)


def gradient_bytes(stage: int, ranks: int, sizes: Sizes, passes: int) -> tuple[float, float]:
    """Returns the bytes of gradients (and, under ZeRO-1 and 2, updated weights) and of gathered weights.

    stage: of ZeRO; 0: none. passes: forward and backward passes, in each of which ZeRO-3 gathers all weights.
    """
    ring = (ranks - 1) / ranks
    if stage == 3:
        return ring * FP32 * sizes.trained, ring * sizes.gathered_bytes * passes
    return 2 * ring * FP32 * sizes.trained, 0.0


def update_seconds(stage: int, ranks: int, sizes: Sizes, rates: Rates, offloaded: bool) -> float:
    mine = sizes.trained / ranks if stage else sizes.trained
    return UPDATE * mine / (rates.host_memory if offloaded else rates.memory)


def transfer_seconds(engine: str, ranks: int, sizes: Sizes, passes: int, rates: Rates) -> float:
    """Seconds of an offloading engine's copies: the gradient's share to the host and the updated weights back; with
    ZeRO-3 in place of these the rank's share of all weights, for every pass."""
    gradient = FP32 * sizes.trained / ranks
    if engine == "zero2_offload":
        return 2 * gradient / rates.host
    if engine == "zero3_offload":
        return (gradient + passes * sizes.weight_bytes / ranks) / rates.host
    return 0.0
