"""Seconds of a step, term by term. Pure arithmetic: no torch, no files.

- A rank embeds its texts in chunks. It keeps what the backward pass needs of `micro_batch_tokens` tokens, and embeds
  the other texts a second time (trainer/train/step.py).
- A pass takes its matrix products and what it moves through memory, one after the other. A product takes the longer of
  its operations and its bytes: narrow ones (adapters) are bound by the memory.
- A GPU works while the next operations are started, and waits where starting them takes longer.
- Nothing of the traffic is hidden: gradients travel after the last backward pass, ZeRO-3 gathers its weights in the
  stream that computes (`overlap_comm: false`).
- DeepSpeed copies what it sends: gradients into its buckets and out of them, gathered weights into their tensors.
"""

import math
from dataclasses import asdict, dataclass, fields

from launch.plan.hardware import Hardware, Link, Rates
from trainer.diagnosis.profile import Effort, Product, Profile

FP32 = 4
# Bytes per trained number: AdamW reads weight, gradient and moments and writes all but the gradient; the norm reads the
# gradient; clipping reads and writes it.
UPDATE = 28 + 4 + 8
GRADIENT_COPIES = 3  # of DeepSpeed: into the bucket, the bucket into flat memory, this rank's share out of it
GATHER_COPIES = 2  # of DeepSpeed: the flat memory that is received, each tensor out of it
# Bytes of memory traffic for a byte copied: read and written. On a CPU the copy fills new pages, which takes as long as
# an addition into new memory, and `Rates.host_memory` counts three for that.
COPY, COPY_INTO_NEW_PAGES = 2, 3
MAPPED = 32 << 20  # bytes of a tensor from which glibc takes new pages each time; smaller ones use freed memory again


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
    numbers: int  # that ZeRO-3 gathers
    mapped_bytes: int  # as gathered, of tensors that are MAPPED
    frozen: int  # numbers of frozen matrices
    tensors: int  # tensors that ZeRO-3 divides
    small: int  # tensors that ZeRO-3 keeps whole, and gathers after an update, each by itself
    attention: int  # see trainer.diagnosis.footprint.Footprint
    size: int  # of an embedding


@dataclass(frozen=True)
class Chunks:
    """The way a rank's tokens go through the model."""

    tokens: float
    kept: float  # tokens whose activations are kept
    chunk: int  # tokens of a chunk at most
    filled: float  # tokens that whole texts fill of it

    @property
    def more(self) -> float:
        """Tokens that are embedded twice."""
        return self.tokens - self.kept

    @property
    def share_twice(self) -> float:
        return self.more / self.tokens if self.tokens else 0.0

    @property
    def kept_passes(self) -> int:
        return self._passes(self.kept)

    @property
    def more_passes(self) -> int:
        return self._passes(self.more)

    def _passes(self, tokens: float) -> int:
        return math.ceil(round(tokens / self.filled, 6))  # the quotient of a multiple may be a hair above it

    @property
    def is_one(self) -> bool:
        """True if one chunk holds all tokens: a forward pass and a backward pass."""
        return self.passes == 2

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
    work = sum(p.count * product_seconds(p, each, rates, rate) for p in effort.products)
    work = passes * (work + effort.moved.at(each) / rates.memory) + squares / rate
    starting = passes * effort.started * rates.started
    return max(work, starting) if rates.at_once else work + starting


def product_seconds(product: Product, tokens: float, rates: Rates, rate: float) -> float:
    """Seconds of one matrix product. A CPU's library first lays out the weights anew: what a product moves for any
    number of tokens goes through memory before it begins."""
    if rates.at_once:
        return max(product.operations * tokens / rate, product.moved.at(tokens) / rates.memory)
    own = product.moved.at(tokens) - product.moved.fixed
    return max(product.operations * tokens / rate, own / rates.memory) + product.moved.fixed / rates.host_memory


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

    embeddings: float = 0.0  # bytes of them and of their gradients
    reduced: float = 0.0  # bytes of gradients, whole on every rank
    gathered: float = 0.0  # bytes of weights: updated ones under ZeRO-1 and 2, all of every pass under ZeRO-3
    scattered: float = 0.0  # bytes of gradients under ZeRO-3
    calls: int = 0  # collectives of trainer.distributed.collectives
    own: int = 0  # DeepSpeed's that bring gradients together
    gathers: int = 0  # DeepSpeed's all-gathers

    @property
    def sent(self) -> float:
        return self.embeddings + self.reduced + self.gathered + self.scattered


def communication_seconds(traffic: Traffic, hardware: Hardware, nodes: int, per_node: int) -> float:
    """Seconds of the bytes of a ring over all ranks, at its slowest link, and of a tree's messages per collective."""
    if nodes * per_node == 1:
        return 0.0
    used: list[tuple[Link, int]] = [(hardware.within, per_node)] if per_node > 1 else []
    used += [(hardware.between, nodes)] if nodes > 1 else []

    def seconds(calls: int, sent: float, kind: str | None = None) -> float:
        links = [((kind and getattr(link, kind)) or link, count) for link, count in used]
        messages = sum(2 * math.ceil(math.log2(count)) * link.latency for link, count in links)
        return calls * messages + sent / min(link.bandwidth for link, _ in links)

    reduces, scatters = (0, traffic.own) if traffic.scattered else (traffic.own, 0)
    return (
        seconds(traffic.calls + reduces, traffic.embeddings + traffic.reduced)
        + seconds(traffic.gathers, traffic.gathered, "gather")
        + seconds(scatters, traffic.scattered, "scatter")
    )


@dataclass(frozen=True)
class Buckets:
    """DeepSpeed's sizes, in numbers."""

    reduced: int  # of gradients that travel together
    prefetched: int  # of weights that are gathered together, ahead of their use
    live: int  # of weights that ZeRO-3 keeps from a forward pass to its backward pass


def gathered_times(chunks: Chunks, recompute: bool, sizes: Sizes, buckets: Buckets) -> float:
    """Returns how often a step of ZeRO-3 gathers all weights. A step of one chunk repeats the one before, so that
    DeepSpeed knows what the backward pass needs again; with more chunks every pass gathers everything. Blocks that are
    computed again gather their frozen matrices twice in a backward pass."""
    numbers = max(1, sizes.numbers)
    again = (chunks.kept_passes + chunks.more_passes) * sizes.frozen / numbers if recompute else 0.0
    return again + (2 - min(1.0, buckets.live / numbers) if chunks.is_one else chunks.passes)


def of_weights(stage: int, ranks: int, sizes: Sizes, chunks: Chunks, recompute: bool, buckets: Buckets) -> Traffic:
    """Returns what a step's gradients and weights send.

    stage: of ZeRO; 0: none.
    ZeRO-1 and 2 sum whole gradients on every rank (`use_multi_rank_bucket_allreduce`, DeepSpeed's default), then gather
    the updated weights.
    """
    ring, gradient = (ranks - 1) / ranks, FP32 * sizes.trained
    own = math.ceil(sizes.trained / buckets.reduced) if stage else 0
    if stage < 3:
        return Traffic(reduced=2 * ring * gradient, gathered=ring * gradient if stage else 0.0, own=own, gathers=own)
    times = gathered_times(chunks, recompute, sizes, buckets)
    calls = times * (math.ceil(sizes.numbers / buckets.prefetched) if chunks.is_one else sizes.tensors)
    gathered = ring * sizes.gathered_bytes * times
    return Traffic(gathered=gathered, scattered=ring * gradient, own=own, gathers=math.ceil(calls) + sizes.small)


def update_seconds(stage: int, ranks: int, sizes: Sizes, rates: Rates, offloaded: bool) -> float:
    mine = sizes.trained / ranks if stage else sizes.trained
    return UPDATE * mine / (rates.host_memory if offloaded else rates.memory)


def copy_seconds(stage: int, sizes: Sizes, chunks: Chunks, recompute: bool, buckets: Buckets, rates: Rates) -> float:
    """Seconds of DeepSpeed's copies: of gradients, and under ZeRO-3 of the weights that it gathers."""
    copied, again = GRADIENT_COPIES * FP32 * sizes.trained if stage else 0, 0.0
    if stage == 3:
        # a step of one chunk gathers in large buckets, one of several chunks tensor by tensor
        new = sizes.gathered_bytes if chunks.is_one else sizes.mapped_bytes
        times = GATHER_COPIES * gathered_times(chunks, recompute, sizes, buckets)
        copied, again = copied + times * new, times * (sizes.gathered_bytes - new)
    into_new = COPY / rates.memory if rates.at_once else COPY_INTO_NEW_PAGES / rates.host_memory
    return copied * into_new + again * COPY / rates.memory


def transfer_seconds(engine: str, ranks: int, sizes: Sizes, passes: int, rates: Rates) -> float:
    """Seconds of an offloading engine's copies: the gradient's share to the host and the updated weights back; with
    ZeRO-3 in place of these the rank's share of all weights, for every pass."""
    gradient = FP32 * sizes.trained / ranks
    if engine == "zero2_offload":
        return 2 * gradient / rates.host
    if engine == "zero3_offload":
        return (gradient + passes * sizes.weight_bytes / ranks) / rates.host
    return 0.0
