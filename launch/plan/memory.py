"""Computes the memory of a rank under every engine from a model's footprint. Never imports torch.

- State is exact: the engines allocate this (trainer/engine/; DeepSpeed's stage_1_and_2.py and stage3.py).
- Gradients of a step are reduced once, after its last backward pass.
- Rajbhandari et al. 2020, arXiv:1910.02054, section 5, explains each ZeRO stage.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from data_prep.common.errors import BadInput
from trainer.distributed.engines import OFFLOADED, ZERO

FP32 = 4
MOMENTS = 2 * FP32  # bytes of AdamW per trained number
EIGHT_BIT_MOMENTS = 2 * (1 + FP32 / 256)  # bytes, and a scale for each block of 256
LEAST_EIGHT_BIT = 4096  # smaller tensors keep 32 bits, as bitsandbytes does
PROCESS = {"cpu": 0, "mps": 0, "cuda": 6 * 2**27}  # the CUDA context and its libraries, beside all tensors
HEADROOM = 0.9  # usable share of a rank's memory: the allocator fragments the rest
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Model:
    """Sizes of a model in training."""

    trained: int  # numbers in trained parameters
    frozen: int  # numbers in frozen parameters
    frozen_bytes: int  # of frozen parameters, as they are stored
    buffers: int  # bytes
    small: int  # numbers in tensors that ZeRO-3 keeps whole, trained and frozen
    moments: int  # bytes of both moments of all trained parameters
    average: int = 0  # bytes of the weights' average, if the run keeps one


@dataclass(frozen=True)
class Passes:
    """The forward and backward pass of a chunk, in bytes; see trainer.diagnosis.footprint.Chunk."""

    tokens: int
    kept: int
    first: int
    later: int


@dataclass(frozen=True)
class Need:
    """Memory of one rank, in bytes."""

    weights: int
    optimizer: int
    gradients: int  # during backward passes
    activations: int  # kept for the backward pass
    working: int  # the passes of one chunk, beside activations
    loss: int
    gathered: int  # weights that are whole for a while, or on their way
    buckets: int  # flat copies in which gradients are sent
    held: int = 0  # DeepSpeed's own bucket, allocated all the time
    process: int = 0
    host: int = 0  # in the machine's memory, if the engine offloads

    @property
    def state(self) -> int:
        """Bytes between two steps."""
        return self.weights + self.optimizer

    @property
    def total(self) -> int:
        """Peak bytes: in a backward pass, or while gradients are reduced; the loss comes before."""
        backward = self.activations + max(self.working, self.loss) + self.gathered
        return self.state + self.process + self.held + max(backward, self.gradients + self.buckets)

    def shown(self) -> dict[str, int]:
        return asdict(self) | {"state": self.state, "total": self.total}


NEED = tuple(field.name for field in fields(Need))


def need(
    engine: str, ranks: int, model: Model, passes: Passes, kept_tokens: int, more_tokens: int, loss: int,
    zero: Mapping, bucket_bytes: int, device: str,
) -> Need:  # fmt: skip
    """Returns the memory of a rank that keeps the activations of kept_tokens tokens and embeds more_tokens twice.

    loss: bytes of its tiles and embeddings. zero: zero_optimization of the engine's JSON, with DeepSpeed's defaults.
    bucket_bytes: of the buckets that are sent at once without DeepSpeed.
    """
    local = FP32 * model.trained  # every rank has the whole gradient until the step's end
    bucket, stage = FP32 * zero["reduce_bucket_size"], int(zero["stage"]) if engine in ZERO else 0
    inside = min(bucket, local) if stage == 3 else 0  # part of the gradient that is in DeepSpeed's bucket at once
    passes = replace(passes, first=max(passes.kept, passes.first - inside))
    activations, working = _passes(passes, kept_tokens, more_tokens, local - inside)
    whole = model.frozen_bytes + FP32 * model.trained + model.buffers + model.average
    parts = {"activations": activations, "working": working, "loss": loss, "process": PROCESS[device]}
    if not stage:
        buckets = bucket_bytes if ranks > 1 else 0
        return Need(whole, model.moments, local, gathered=0, buckets=buckets, **parts)
    part = FP32 * math.ceil(model.trained / ranks)  # a rank's share of anything of the trained parameters in fp32
    offloaded = engine in OFFLOADED
    buckets = min(bucket, local)
    # on a GPU DeepSpeed's bucket counts whole; on a CPU only its touched pages, which ZeRO-3 keeps between steps
    parts["held"] = bucket if device == "cuda" else inside
    moments = 2 * part
    if stage < 3:
        own = part + moments  # with a copy of its share of the weights, for the update
        return Need(
            whole, 0 if offloaded else own, local, gathered=0, buckets=buckets,
            host=own + 2 * part if offloaded else 0, **parts,
        )  # fmt: skip
    partition = math.ceil((model.frozen_bytes + model.average) / ranks) + part
    own = moments + 2 * part  # with its share of the gradient, and a copy of its weights, for the update
    divided = model.trained + model.frozen - model.small
    each = (FP32 * model.trained + model.frozen_bytes) / max(1, model.trained + model.frozen)  # bytes of a number
    live = round(each * min(divided, zero["stage3_max_live_parameters"]))
    coming = round(each * min(divided, zero["stage3_prefetch_bucket_size"]))  # is gathered flat, then copied
    small = FP32 * model.small + model.buffers
    return Need(
        small + (0 if offloaded else partition), 0 if offloaded else own, local - inside, gathered=live + coming,
        buckets=buckets, host=partition + own if offloaded else 0, **parts,
    )  # fmt: skip


def _passes(passes: Passes, kept_tokens: int, more_tokens: int, gradients: int) -> tuple[int, int]:
    """Returns the activations of all kept chunks, and the peak of the backward passes beside them.

    The kept chunks are back-propagated one by one. In the first pass all other activations exist, and gradients are
    being allocated; in every later one all gradients exist, and one chunk's activations less each time.
    """
    chunks = max(1.0, kept_tokens / passes.tokens)
    kept = round(chunks * passes.kept)
    worst = kept - passes.kept + passes.first
    if chunks > 1 or more_tokens:
        worst = max(worst, gradients + max(0, kept - 2 * passes.kept) + passes.later)
    return kept, worst - kept


def moments_bytes(sizes: list[int], eight_bit: bool) -> int:
    """Bytes of both moments of tensors of these sizes."""
    if not eight_bit:
        return MOMENTS * sum(sizes)
    return sum(math.ceil(EIGHT_BIT_MOMENTS * n) if n >= LEAST_EIGHT_BIT else MOMENTS * n for n in sizes)


def frozen_bytes(rows: int, numel: int, bits: int | None, half: bool = False) -> int:
    """Bytes of a frozen weight: fp32, bf16, int8 with a scale for each row, or NF4 with quantised scales."""
    if bits == 8:
        return numel + FP32 * rows
    if bits == 4:
        blocks = math.ceil(numel / 64)
        return math.ceil(numel / 2) + blocks + FP32 * math.ceil(blocks / 256) + FP32 * (16 + 256 + 1)
    return (2 if half else FP32) * numel


def read_bytes(text: str, flag: str) -> int:
    """Parses 80GB, 24GiB, 512MiB or 1e10. Raises BadInput."""
    amount = re.fullmatch(r"\s*([\d.]+(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = amount and UNITS.get(amount[2].upper())
    if not unit or not float(amount[1]) > 0:
        raise BadInput(f"{flag}: {text!r} is no amount; write for example 80GB or 24GiB")
    return int(float(amount[1]) * unit)


def shown(count: float) -> str:
    """Formats bytes for people: 1.25 GB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
