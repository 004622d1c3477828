"""Estimates a run on stated ranks: memory, steps, traffic and time of every engine.

Torch is imported inside functions: the model is built of tensors without data (trainer/diagnosis/footprint.py).
"""

import math
from dataclasses import dataclass, replace

from data_prep.common.errors import BadInput
from launch.plan.memory import FP32, HEADROOM, Model, Need, Passes, kept_and_more, moments_bytes, need, quantised_bytes
from launch.plan.traffic import INT64, KEYS, SCORES, Link, Share, embedding_bytes, gradient_bytes
from trainer.config.compatibility import check_modes
from trainer.config.sections import RunConfig
from trainer.distributed.deepspeed_json import read_ds_json
from trainer.distributed.engines import LONE, OFFLOADED, ZERO
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan, total_steps
from trainer.preflight.inputs import Inputs

SAMPLED_STEPS = 4  # steps whose texts are read and tokenised
PERSISTENT = 100_000  # numbers in the largest tensor that ZeRO-3 keeps whole
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
class Estimate:
    """The estimate of one engine."""

    engine: str
    refused: str = ""  # the reason that the engine cannot run this; all else is then None
    need: Need | None = None
    fits: bool = False
    budget: int | None = None  # micro_batch_tokens
    largest: int | None = None  # micro_batch_tokens that fit at most; None: not even one chunk of one text
    calls: int | None = None  # of trainer.distributed.collectives in a step
    sent: int | None = None  # least bytes that a rank sends in a step, with DeepSpeed's own
    again: float | None = None  # share of a step's tokens that are embedded twice
    step_seconds: float | None = None  # with a stated throughput only
    epoch_seconds: float | None = None


@dataclass
class Outlook:
    """A run: the plan of its batches, and the footprint of its model."""

    config: RunConfig
    spec: ModelSpec
    plan: BatchPlan
    ranks: Ranks
    batches: list  # forecast.SampledBatch
    footprint: object

    @property
    def steps(self) -> int:
        return total_steps(self.plan, self.config.train.epochs, self.config.train.max_steps)

    @property
    def shares(self) -> list[list[Share]]:
        """Shares of all ranks, in each of the sampled batches."""
        return [[Share(*share) for share in batch.shares(self.ranks.count)] for batch in self.batches]

    @property
    def tokens(self) -> int:
        """Tokens of the busiest rank in the largest of the sampled batches."""
        return max(share.tokens for shares in self.shares for share in shares)

    @property
    def negatives(self) -> list[int]:
        """Negatives of a query in each sampled batch, before masks."""
        counts = []
        for batch, shares in zip(self.batches, self.shares):
            whole = self.config.loss_of(batch.source).negatives == "batch"
            per_rank = [share.documents for share in shares if share.rows]
            counts.append(sum(per_rank) - 1 if whole else max(per_rank) - 1)
        return counts

    def model(self) -> Model:
        parameters = self.footprint.parameters
        trained = [p for p in parameters if p.trained]
        frozen = [p for p in parameters if not p.trained]
        stored = sum(quantised_bytes(p.shape[0], p.numel, self.spec.bits if p.linear else None) for p in frozen)
        return Model(
            trained=sum(p.numel for p in trained),
            frozen=sum(p.numel for p in frozen),
            frozen_bytes=stored,
            buffers=self.footprint.buffers,
            small=sum(p.numel for p in parameters if p.numel <= PERSISTENT),
            moments=moments_bytes([p.numel for p in trained], self.config.optim.name == "adamw_8bit"),
            average=FP32 * sum(p.numel for p in trained) if self.config.optim.ema else 0,
        )


def look(config: RunConfig, ranks: Ranks) -> Outlook:
    """Reads the model folder's config and a few batches. Raises BadInput as a run would."""
    from trainer.diagnosis.footprint import footprint
    from trainer.diagnosis.forecast import sample
    from trainer.engine.chunks import CHUNK_TOKENS

    inputs = Inputs(config)
    spec = inputs.spec
    if spec.is_adapter:
        raise BadInput(f"model.path: {spec.path} is an adapter; a run starts from its base (model.lora.start)")
    plan = inputs.plan
    steps = min(SAMPLED_STEPS, total_steps(plan, config.train.epochs, config.train.max_steps))
    outlook = Outlook(config, spec, plan, ranks, sample(inputs, steps), None)
    texts = max((share for shares in outlook.shares for share in shares), key=lambda share: share.tokens)
    length = max(1, round(texts.tokens / max(1, texts.texts)))
    requested = config.train.micro_batch_tokens
    budget = outlook.tokens if requested == "auto" else min(requested, outlook.tokens)
    chunk = min(budget, CHUNK_TOKENS[ranks.device])
    outlook.footprint = footprint(config, spec, ranks.device, chunk, length)
    return outlook


def engines_for(ranks: Ranks) -> list[str]:
    several = ["ddp", *ZERO] if ranks.count > 1 else [LONE[ranks.device], *OFFLOADED]
    return [name for name in several if ranks.device == "cuda" or name not in OFFLOADED]


def estimate(outlook: Outlook, engine: str, throughput: float | None, link: Link) -> Estimate:
    """Estimates one engine. throughput: tokens per second of one rank, forward and backward."""
    try:
        check_modes(outlook.config, engine)
    except BadInput as error:
        return Estimate(engine, refused="; ".join(error.problems))
    requested, memory = outlook.config.train.micro_batch_tokens, HEADROOM * outlook.ranks.memory
    largest = _largest(outlook, engine, memory)
    budget = (largest or outlook.footprint.chunk.tokens) if requested == "auto" else requested
    needed = needed_with(outlook, engine, budget)
    calls, sent = _traffic(outlook, engine, budget)
    more = kept_and_more(outlook.tokens, budget)[1] / outlook.tokens
    without_times = Estimate(engine, "", needed, needed.total <= memory, budget, largest, calls, sent, more)
    if throughput is None:
        return without_times
    busiest = [max(share.tokens for share in shares) for shares in outlook.shares]
    # a text that is embedded twice costs a third more: another forward pass
    seconds = sum(busiest) / len(busiest) * (1 + more / 3) / throughput + link.seconds(outlook.ranks.count, sent, calls)
    return replace(without_times, step_seconds=seconds, epoch_seconds=seconds * outlook.plan.steps_per_epoch)


def needed_with(outlook: Outlook, engine: str, budget: int) -> Need:
    """Returns the memory of the busiest rank. budget: micro_batch_tokens."""
    kept, more = kept_and_more(outlook.tokens, budget)
    chunk = outlook.footprint.chunk
    part = min(1.0, kept / chunk.tokens)
    sizes = (round(part * size) for size in (chunk.kept, chunk.first, chunk.later))
    passes = Passes(max(1, round(chunk.tokens * part)), *sizes)
    zero = DEFAULTS | (read_ds_json(f"{engine}.json")["zero_optimization"] if engine in ZERO else {})
    bucket = max(outlook.footprint.buckets)
    return need(
        engine, outlook.ranks.count, outlook.model(), passes, kept, more, _loss_bytes(outlook), zero, bucket,
        outlook.ranks.device,
    )  # fmt: skip


def _loss_bytes(outlook: Outlook) -> int:
    """Bytes of the loss: embeddings as parts, whole and in order, all documents, their gradients, and one tile."""
    from trainer.loss.info_nce import TILE_ELEMENTS

    size, largest = outlook.footprint.size, 0
    for batch, shares in zip(outlook.batches, outlook.shares):
        busiest = max(shares, key=lambda share: share.documents)
        whole = outlook.config.loss_of(batch.source).negatives == "batch"
        documents = sum(share.documents for share in shares) if whole else busiest.documents
        rows = 4 * size * (4 * busiest.texts + 3 * documents)
        exchanged = documents * (KEYS + SCORES) * INT64
        largest = max(largest, rows + 4 * min(TILE_ELEMENTS, busiest.rows * documents) + exchanged)
    return largest


def _largest(outlook: Outlook, engine: str, memory: float) -> int | None:
    """Finds by bisection the most micro_batch_tokens that fit; all tokens of the busiest rank if all fit."""
    low, high = 0, outlook.tokens
    if needed_with(outlook, engine, high).total <= memory:
        return high
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        fits = needed_with(outlook, engine, middle).total <= memory
        low, high = (middle, high) if fits else (low, middle)
    return low if low >= 64 else None  # the least that a run file may set


def _traffic(outlook: Outlook, engine: str, budget: int) -> tuple[int, int]:
    """Returns collectives of the trainer in a step, and bytes that a rank sends: maxima of the sampled batches."""
    from trainer.loss.objective import Objective
    from trainer.train.step import USAGE, planned_collectives

    ranks, model = outlook.ranks.count, outlook.model()
    if ranks == 1:
        return 0, 0
    buckets = len(outlook.footprint.buckets) if engine == "ddp" else 0  # DeepSpeed makes its own
    calls = sent = 0
    for batch, shares in zip(outlook.batches, outlook.shares):
        loss = Objective(outlook.config.loss_of(batch.source), outlook.spec.normalize)
        kept, more = kept_and_more(max(share.tokens for share in shares), budget)
        passes = math.ceil(kept / outlook.footprint.chunk.tokens) + 2 * math.ceil(more / outlook.footprint.chunk.tokens)
        chunk_passes = 2 * passes - math.ceil(more / outlook.footprint.chunk.tokens)  # backward passes gather again
        gradients = gradient_bytes(engine, ranks, model.trained, model.trained + model.frozen, chunk_passes)
        logged = len(loss.stat_names) + len(USAGE)
        embeddings = embedding_bytes(loss, logged, outlook.footprint.size, shares)
        calls, sent = max(calls, planned_collectives(ranks, loss, buckets)), max(sent, embeddings + gradients)
    return calls, sent


def choose_engine(estimates: list[Estimate], asked: str) -> tuple[Estimate | None, str]:
    """Returns the engine to use and the reason; None if none fits. estimates: in the order of bytes sent."""
    if asked != "auto":
        candidate = next((e for e in estimates if e.engine == asked), None)
        if candidate is None:
            known = ", ".join(e.engine for e in estimates)
            raise BadInput(f"--engine: {asked} is no engine for these ranks; {known} are")
        if candidate.refused:
            raise BadInput(f"--engine: {candidate.refused}")
        return (candidate, "asked for") if candidate.fits else (None, f"{asked} was asked for and does not fit")
    skipped = []
    for candidate in estimates:
        if candidate.fits and candidate.again == min(e.again for e in estimates if e.fits):
            passed = f"; {', '.join(skipped)} would not fit or would embed more texts twice" if skipped else ""
            return candidate, f"of those that fit, it sends least and embeds fewest texts twice{passed}"
        skipped.append(candidate.engine)
    mend = "lower train.micro_batch_tokens, take more ranks, or fine-tune adapters (model.finetune)"
    return None, f"no engine fits: {mend}"
