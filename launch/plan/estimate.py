"""Estimates every candidate of a run on stated ranks: memory, traffic, seconds.

Torch is imported inside functions: the model is built of tensors without data (trainer/diagnosis/footprint.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property

from data_prep.common.errors import BadInput
from launch.plan.cost import (
    Buckets,
    Chunks,
    Load,
    Seconds,
    Traffic,
    communication_seconds,
    copy_seconds,
    embedding_seconds,
    of_weights,
    transfer_seconds,
    update_seconds,
)
from launch.plan.guides import GuideFacts, guides_of
from launch.plan.hardware import Hardware
from launch.plan.memory import HEADROOM, Need, Passes, need
from launch.plan.traffic import INT64, KEYS, SCORES, Share, embedding_bytes
from launch.plan.variant import Variant
from trainer.config.compatibility import check_modes
from trainer.config.sections import RunConfig
from trainer.distributed.deepspeed_json import read_ds_json
from trainer.distributed.engines import LONE, OFFLOADED, ZERO
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan, total_steps

SAMPLED_STEPS = 4  # steps whose texts are read and tokenised
LEAST = 64  # the least micro_batch_tokens that a run file may set
SPARE = 2  # times the tokens of the busiest sampled rank: later batches may have more
DEFAULTS = {  # of DeepSpeed
    "reduce_bucket_size": 500_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


@dataclass(frozen=True)
class Ranks:
    """nodes x per_node processes."""

    nodes: int
    per_node: int
    device: str  # cpu, mps or cuda
    memory: int  # bytes that one process may use

    @property
    def count(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Candidate:
    """A way to run: what changes speed and memory, never what is learnt (but for `bits`)."""

    engine: str
    recompute: bool
    bits: int | None = None  # of the frozen base

    def __str__(self) -> str:
        return self.engine + (" + recompute" if self.recompute else "") + (f" + {self.bits} bits" if self.bits else "")


@dataclass(frozen=True)
class Estimate:
    """The estimate of one candidate."""

    candidate: Candidate
    refused: str = ""  # the reason that it cannot run; all else is then None
    need: Need | None = None
    fits: bool = False
    budget: int | None = None  # micro_batch_tokens
    largest: int | None = None  # micro_batch_tokens that fit at most; None: not even one chunk of one text
    calls: int | None = None  # of trainer.distributed.collectives in a step
    sent: int | None = None  # least bytes that a rank sends in a step
    again: float | None = None  # share of a step's tokens that are embedded twice
    seconds: Seconds | None = None  # of a step

    @property
    def engine(self) -> str:
        return self.candidate.engine


@dataclass
class Outlook:
    """A run: the plan of its batches, and the footprint of its model."""

    config: RunConfig
    spec: ModelSpec
    plan: BatchPlan
    ranks: Ranks
    batches: list  # forecast.SampledBatch
    longest: int  # tokens of the longest text
    variants: list[Variant]
    weights: str = ""  # where they are, for people

    @property
    def steps(self) -> int:
        return total_steps(self.plan, self.config.train.epochs, self.config.train.max_steps)

    @cached_property
    def shares(self) -> list[list[Share]]:
        """Shares of all ranks, in each of the sampled batches."""
        return [[Share(*share) for share in batch.shares(self.ranks.count)] for batch in self.batches]

    @cached_property
    def guides(self) -> dict[str, GuideFacts]:
        return guides_of(self.config)

    @property
    def tokens(self) -> int:
        """Tokens of the busiest rank in the largest of the sampled batches."""
        return max(share.tokens for shares in self.shares for share in shares)

    @cached_property
    def load(self) -> Load:
        """Mean load of the busiest rank."""
        busiest = [max(shares, key=lambda share: share.tokens) for shares in self.shares]
        documents = [sum(share.documents for share in shares) for shares in self.shares]
        count = len(busiest)
        sums = (sum(getattr(share, name) for share in busiest) / count for name in ("tokens", "squares", "rows"))
        return Load(*sums, sum(documents) / count)

    @cached_property
    def text(self) -> float:
        """Mean tokens of a text."""
        every = [share for shares in self.shares for share in shares]
        return sum(share.tokens for share in every) / max(1, sum(share.texts for share in every))

    @property
    def negatives(self) -> list[float]:
        """Negatives of a query in each sampled batch, before masks."""
        counts = []
        for batch, shares in zip(self.batches, self.shares):
            scope = self.config.loss_of(batch.source).negatives
            per_rank = [share.documents for share in shares if share.rows]
            if scope == "own":  # a mean
                rows = sum(share.rows for share in shares)
                counts.append(round((sum(per_rank) - rows) / rows, 2))
                continue
            whole = scope == "batch"
            counts.append(sum(per_rank) - 1 if whole else max(per_rank) - 1)
        return counts

    def on(self, ranks: Ranks) -> "Outlook":
        """The same run on other ranks."""
        return replace(self, ranks=ranks)


def look(config: RunConfig, ranks: Ranks, bits: tuple[int, ...] = ()) -> Outlook:
    """Reads the model folder's config and a few batches. Raises BadInput as a run would.

    bits: of the base of a LoRA run, to look at as well.
    """
    from trainer.diagnosis.forecast import longest_text, sample
    from trainer.diagnosis.weightless import WeightlessInputs

    inputs = WeightlessInputs(config)
    spec, config = inputs.spec, inputs.config
    if bits and config.model.finetune != "lora":
        raise BadInput(
            f"--bits: only the base of a LoRA run can be quantised; model.finetune is {config.model.finetune}"
        )
    plan = inputs.plan
    steps = min(SAMPLED_STEPS, total_steps(plan, config.train.epochs, config.train.max_steps))
    batches = sample(inputs, steps)
    outlook = Outlook(config, spec, plan, ranks, batches, longest_text(inputs, batches), [], inputs.weights_line)
    outlook.variants = [_variant(outlook, config), *(_variant(outlook, _quantised(config, each)) for each in bits)]
    return outlook


def _quantised(config: RunConfig, bits: int) -> RunConfig:
    model = config.model.model_copy(update={"finetune": "qlora", "quantization_bits": bits})
    return config.model_copy(update={"model": model})


def _variant(outlook: Outlook, config: RunConfig) -> Variant:
    from trainer.diagnosis.footprint import footprint, half_base
    from trainer.engine.chunks import CHUNK_TOKENS

    texts = max((share for shares in outlook.shares for share in shares), key=lambda share: share.tokens)
    length, device = max(1, round(texts.tokens / max(1, texts.texts))), outlook.ranks.device
    traced = footprint(
        config, outlook.spec, device, min(outlook.tokens, CHUNK_TOKENS[device]), length, True in recomputing(config)
    )
    return Variant(config, traced, half_base(config, outlook.spec, device))


def recomputing(config: RunConfig) -> tuple[bool, ...]:
    """Recomputation to look at: both, unless the run file states one."""
    stated = "gradient_checkpointing" in config.train.model_fields_set
    return (config.train.gradient_checkpointing,) if stated else (False, True)


def engines_for(ranks: Ranks) -> list[str]:
    several = ["ddp", *ZERO] if ranks.count > 1 else [LONE[ranks.device], *OFFLOADED]
    return [name for name in several if ranks.device == "cuda" or name not in OFFLOADED]


def candidates(outlook: Outlook, hardware: Hardware, throughput: float | None = None) -> list[Estimate]:
    """Estimates every candidate. throughput: tokens per second of one rank, forward and backward."""
    return [
        estimate(outlook, variant, Candidate(engine, recompute, variant.bits), hardware, throughput)
        for variant in outlook.variants
        for engine in engines_for(outlook.ranks)
        for recompute in recomputing(outlook.config)
    ]


def estimate(
    outlook: Outlook, variant: Variant, candidate: Candidate, hardware: Hardware, throughput: float | None = None
) -> Estimate:
    config = variant.config
    try:
        check_modes(config, candidate.engine)
    except BadInput as error:
        return Estimate(candidate, refused="; ".join(error.problems))
    if variant.profile(candidate.recompute) is None:
        return Estimate(candidate, refused="transformers cannot recompute the blocks of this family")
    requested, memory = config.train.micro_batch_tokens, HEADROOM * outlook.ranks.memory
    largest = _largest(outlook, variant, candidate, memory)
    budget = (largest or max(LEAST, outlook.longest)) if requested == "auto" else requested
    needed = needed_with(outlook, variant, candidate, budget)
    traffic = traffic_of(outlook, variant, candidate, budget)
    seconds = seconds_of(outlook, variant, candidate, budget, traffic, hardware, throughput)
    again = chunks_of(outlook, outlook.tokens, budget).share_twice
    fits = needed.total <= memory
    return Estimate(candidate, "", needed, fits, budget, largest, traffic.calls, int(traffic.sent), again, seconds)


def chunks_of(outlook: Outlook, tokens: float, budget: int) -> Chunks:
    """Splits a rank's tokens of a step: activations kept, within the budget, and embedded twice."""
    from trainer.engine.chunks import CHUNK_TOKENS, chunk_tokens

    chunk = max(chunk_tokens(CHUNK_TOKENS[outlook.ranks.device], budget), min(outlook.longest, outlook.tokens))
    chunk = min(chunk, max(1, outlook.tokens))
    # no text is split: half of one does not fit, on average
    filled = chunk if tokens <= chunk else max(1.0, outlook.text, chunk - outlook.text / 2)
    kept = tokens if tokens <= budget else min(budget, max(1, budget // chunk) * filled)
    return Chunks(tokens, kept, chunk, filled)


def needed_with(outlook: Outlook, variant: Variant, candidate: Candidate, budget: int) -> Need:
    """Returns the memory of the busiest rank. budget: micro_batch_tokens."""
    chunks, engine = chunks_of(outlook, outlook.tokens, budget), candidate.engine
    chunk = variant.footprint.chunk(chunks.chunk, candidate.recompute)
    _, extra = variant.dequantised
    passes = Passes(chunk.tokens, chunk.kept, chunk.first + extra, chunk.later + extra)
    kept = min(outlook.tokens, budget)
    zero = _zero_settings(engine)
    return need(
        engine, outlook.ranks.count, variant.model, passes, kept, outlook.tokens - kept,
        _loss_bytes(outlook, variant.footprint.size), zero, _sent_at_once(variant), outlook.ranks.device,
    )  # fmt: skip


def _sent_at_once(variant: Variant) -> int:
    """Bytes of the largest buckets that are on their way together, without DeepSpeed."""
    from trainer.engine.gradient_traffic import IN_FLIGHT

    return sum(sorted(variant.footprint.buckets)[-IN_FLIGHT:])


def _loss_bytes(outlook: Outlook, size: int) -> int:
    """Bytes of the loss: embeddings as parts, whole and in order, all documents, their gradients, and one tile; the
    same of a guide, and its weights."""
    from trainer.loss.info_nce import TILE_ELEMENTS

    largest = 0
    for batch, shares in zip(outlook.batches, outlook.shares):
        busiest = max(shares, key=lambda share: share.documents)
        whole = outlook.config.loss_of(batch.source).negatives == "batch"
        documents = sum(share.documents for share in shares) if whole else busiest.documents
        rows = 4 * size * (4 * busiest.texts + 3 * documents)
        exchanged = documents * (KEYS + SCORES) * INT64
        guide = outlook.config.loss_of(batch.source).guide
        guided = 4 * outlook.guides[guide.model].size * (2 * busiest.texts + documents) if guide else 0
        tiles = (2 if guide else 1) * 4 * min(TILE_ELEMENTS, busiest.rows * documents)
        largest = max(largest, rows + tiles + exchanged + guided)
    return largest + sum(guide.weights for guide in outlook.guides.values())


def _largest(outlook: Outlook, variant: Variant, candidate: Candidate, memory: float) -> int | None:
    """Finds by bisection the most micro_batch_tokens that fit; if all tokens of the busiest rank do, some more."""
    low, high = max(LEAST, min(outlook.longest, outlook.tokens)), SPARE * outlook.tokens

    def fits(budget: int) -> bool:
        return needed_with(outlook, variant, candidate, budget).total <= memory

    if not fits(low):
        return None
    if fits(high):  # it keeps everything: more than all tokens takes no more
        return max(LEAST, high)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def traffic_of(outlook: Outlook, variant: Variant, candidate: Candidate, budget: int) -> Traffic:
    """Returns the traffic of a step: maxima of the sampled batches."""
    from trainer.loss.objective import Objective
    from trainer.train.step import USAGE, planned_collectives

    ranks, engine = outlook.ranks.count, candidate.engine
    if ranks == 1:
        return Traffic()
    stage, sizes = int(engine[4]) if engine in ZERO else 0, variant.sizes
    chunks = chunks_of(outlook, outlook.tokens, budget)
    buckets = 0 if stage else len(variant.footprint.buckets)  # DeepSpeed makes its own
    traffic = of_weights(stage, ranks, sizes, chunks, candidate.recompute, _buckets(engine))
    calls, sent = 0, 0
    for batch, shares in zip(outlook.batches, outlook.shares):
        config = outlook.config.loss_of(batch.source)
        loss, guided = Objective(config, outlook.spec.normalize), 0
        if config.guide:
            guided = outlook.guides[config.guide.model].size
        logged = len(loss.stat_names) + len(USAGE)
        calls = max(calls, planned_collectives(ranks, loss, buckets))
        sent = max(sent, embedding_bytes(loss, logged, variant.footprint.size, shares, guided))
    return replace(traffic, embeddings=sent, calls=calls)


def _zero_settings(engine: str) -> dict:
    return DEFAULTS | (read_ds_json(f"{engine}.json")["zero_optimization"] if engine in ZERO else {})


def _buckets(engine: str) -> Buckets:
    zero = _zero_settings(engine)
    return Buckets(zero["reduce_bucket_size"], zero["stage3_prefetch_bucket_size"], zero["stage3_max_live_parameters"])


def seconds_of(
    outlook: Outlook, variant: Variant, candidate: Candidate, budget: int, traffic: Traffic, hardware: Hardware,
    throughput: float | None,
) -> Seconds:  # fmt: skip
    engine, ranks, rates, sizes = candidate.engine, outlook.ranks, hardware.rates, variant.sizes
    stage, chunks = int(engine[4]) if engine in ZERO else 0, chunks_of(outlook, outlook.load.tokens, budget)
    profiles = variant.profile(False), variant.profile(True) if candidate.recompute else None
    precision = variant.config.train.precision
    embedding = embedding_seconds(*profiles, chunks, outlook.load, sizes, rates, precision)
    if throughput:
        embedding = [part * outlook.load.tokens / throughput / embedding[0] for part in embedding]
    copied = 0.0
    if ranks.count > 1:
        copied = copy_seconds(stage, sizes, chunks, candidate.recompute, _buckets(engine), rates)
    return Seconds(
        *embedding,
        communication_seconds(traffic, hardware, ranks.nodes, ranks.per_node),
        update_seconds(stage, ranks.count, sizes, rates, engine in OFFLOADED) + copied,
        transfer_seconds(engine, ranks.count, sizes, chunks.passes, rates),
    )
