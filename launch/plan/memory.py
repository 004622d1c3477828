"""What a rank's memory holds under every engine: arithmetic over a model's footprint. Never imports torch.

State is exact: it is what the engines allocate (trainer/engine/torch_engine.py; DeepSpeed's stage_1_and_2.py and stage3.py, with the
gradients of a step brought together once, after its last backward pass). Rajbhandari et al. 2020, arXiv:1910.02054,
section 5, has the idea of each stage.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from data_prep.common.errors import BadInput

FP32 = 4
MOMENTS = 2 * FP32  # of AdamW, for a trained number
EIGHT_BIT_MOMENTS = 2 * (1 + FP32 / 256)  # bytes, and a scale for each block of 256
LEAST_EIGHT_BIT = 4096  # smaller tensors keep 32 bits, as bitsandbytes does
PROCESS = {"cpu": 0, "mps": 0, "cuda": 6 * 2**27}  # the CUDA context and its libraries, beside all tensors
HEADROOM = 0.9  # of a rank's memory: the rest is for fragments of the allocator
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Model:
    """Sizes of what a run trains. trained, frozen: numbers in the parameters; frozen_bytes: of the latter as they are
    stored; buffers: bytes beside them; small: numbers in trained and frozen tensors that ZeRO-3 keeps whole; moments:
    bytes of both moments of all trained parameters; average: of the weights' average, where the run keeps one.
    """

    trained: int
    frozen: int
    frozen_bytes: int
    buffers: int
    small: int
    moments: int
    average: int = 0


@dataclass(frozen=True)
class Passes:
    """A chunk's forward and backward pass, in bytes; see trainer.diagnosis.footprint.Chunk."""

    tokens: int
    kept: int
    first: int
    later: int


@dataclass(frozen=True)
class Need:
    """Bytes of one rank. host: beside them, in the machine's memory, where an engine offloads.

    gradients: while backward passes run. activations: kept for the backward pass; working: what one chunk's passes hold
    besides. gathered: weights that are whole for a while, and those on their way. buckets: flat copies in which
    gradients travel. held: DeepSpeed's own bucket, which is there all the time.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    working: int
    loss: int
    gathered: int
    buckets: int
    held: int = 0
    process: int = 0
    host: int = 0

    @property
    def state(self) -> int:
        """What lies there between two steps."""
        return self.weights + self.optimizer

    @property
    def total(self) -> int:
        """At the worst moment: in a backward pass, or while gradients are brought together; the loss comes before."""
        return (
            self.state
            + self.process
            + self.held
            + max(self.activations + max(self.working, self.loss) + self.gathered, self.gradients + self.buckets)
        )

    def shown(self) -> dict[str, int]:
        return asdict(self) | {"state": self.state, "total": self.total}


NEED = tuple(field.name for field in fields(Need))


def need(
    engine: str, ranks: int, model: Model, passes: Passes, kept_tokens: int, more_tokens: int, loss: int,
    zero: Mapping, bucket_bytes: int, device: str,
) -> Need:  # fmt: skip
    """Of a rank that keeps the activations of kept_tokens tokens and embeds more_tokens twice.

    loss: bytes of its tiles and embeddings. zero: zero_optimization of the engine's JSON, with DeepSpeed's defaults.
    bucket_bytes: the largest bucket in which gradients travel without DeepSpeed.
    """
    local = FP32 * model.trained  # every rank has the whole gradient until the step's end
    bucket, stage = FP32 * zero["reduce_bucket_size"], int(zero["stage"]) if engine.startswith("zero") else 0
    inside = min(bucket, local) if stage == 3 else 0  # of the gradient, which goes into DeepSpeed's bucket as it comes
    passes = replace(passes, first=max(passes.kept, passes.first - inside))
    activations, working = _passes(passes, kept_tokens, more_tokens, local - inside)
    whole = model.frozen_bytes + FP32 * model.trained + model.buffers + model.average
    parts = {"activations": activations, "working": working, "loss": loss, "process": PROCESS[device]}
    if not stage:
        buckets = bucket_bytes if ranks > 1 else 0
        return Need(whole, model.moments, local, gathered=0, buckets=buckets, **parts)
    part = FP32 * math.ceil(model.trained / ranks)  # a rank's share of anything of the trained parameters in fp32
    offloaded = engine.endswith("_offload")
    buckets = min(bucket, local)
    # a GPU has DeepSpeed's bucket whole; of a CPU only the touched pages count, which ZeRO-3 keeps from step to step
    parts["held"] = bucket if device == "cuda" else inside
    moments = 2 * part
    if stage < 3:
        own = part + moments  # with a copy of its share of the weights, which the update is made on
        return Need(
            whole, 0 if offloaded else own, local, gathered=0, buckets=buckets,
            host=own + 2 * part if offloaded else 0, **parts,
        )  # fmt: skip
    partition = math.ceil((model.frozen_bytes + model.average) / ranks) + part
    own = moments + 2 * part  # with its share of the gradient, and a copy of the weights that the update is made on
    divided = model.trained + model.frozen - model.small
    live = FP32 * min(divided, zero["stage3_max_live_parameters"])
    coming = FP32 * min(divided, zero["stage3_prefetch_bucket_size"])  # is gathered flat, then copied
    small = FP32 * model.small + model.buffers
    return Need(
        small + (0 if offloaded else partition), 0 if offloaded else own, local - inside, gathered=live + coming,
        buckets=buckets, host=partition + own if offloaded else 0, **parts,
    )  # fmt: skip


def _passes(passes: Passes, kept_tokens: int, more_tokens: int, gradients: int) -> tuple[int, int]:
    """(activations of all kept chunks, what the worst moment of the backward passes holds besides).

    The kept chunks go back one by one. In the first of them all other activations are there and gradients come into
    being; in every later one all gradients are there, and one chunk's activations less each time.
    """
    chunks = max(1.0, kept_tokens / passes.tokens)
    kept = round(chunks * passes.kept)
    worst = kept - passes.kept + passes.first
    if chunks > 1 or more_tokens:
        worst = max(worst, gradients + max(0, kept - 2 * passes.kept) + passes.later)
    return kept, worst - kept


def kept_and_more(tokens: int, budget: int) -> tuple[int, int]:
    """Of a rank's tokens in a step: those whose activations are kept within the budget, and those embedded twice."""
    return min(tokens, budget), max(0, tokens - budget)


def moments_bytes(sizes: list[int], eight_bit: bool) -> int:
    """Of both moments of tensors of these sizes."""
    if not eight_bit:
        return MOMENTS * sum(sizes)
    return sum(math.ceil(EIGHT_BIT_MOMENTS * n) if n >= LEAST_EIGHT_BIT else MOMENTS * n for n in sizes)


def quantised_bytes(rows: int, numel: int, bits: int | None) -> int:
    """Of a frozen weight: fp32, int8 with a scale for each row, or NF4 with scales that are quantised themselves."""
    if bits == 8:
        return numel + FP32 * rows
    if bits == 4:
        blocks = math.ceil(numel / 64)
        return math.ceil(numel / 2) + blocks + FP32 * math.ceil(blocks / 256) + FP32 * (16 + 256 + 1)
    return FP32 * numel


def read_bytes(text: str, flag: str) -> int:
    """80GB, 24GiB, 512MiB, 1e10. Raises BadInput."""
    found = re.fullmatch(r"\s*([\d.]+(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found and UNITS.get(found[2].upper())
    if not unit or not float(found[1]) > 0:
        raise BadInput(f"{flag}: {text!r} is no amount; write for example 80GB or 24GiB")
    return int(float(found[1]) * unit)


def shown(count: float) -> str:
    """For people: 1.25 GB."""
    for unit in ("TB", "GB", "MB", "kB"):
        size = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}[unit]
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
