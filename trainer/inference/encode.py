"""Texts to embeddings, over all ranks.

- Texts are sorted by length, longest first, and cut into blocks. Ranks take blocks in turns.
- A block is tokenised, embedded in chunks under a token budget, and forgotten. A rank keeps the vectors that it made,
  many of them in a mapped file (kept.py).
- Blocks and their chunks do not depend on the number of ranks, so a text's vector has the same bits on any number of
  them. Equal texts are embedded once, so that they have equal vectors.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.common.console import Meter
from trainer.distributed.collectives import World
from trainer.engine.chunks import CHUNK_TOKENS, lay, make_chunks
from trainer.engine.protocol import Engine
from trainer.inference.kept import AT_ONCE, keep, parts
from trainer.model.tokenizer import prompt_tokens, tokenize_each

CHARACTERS_PER_TOKEN = 4  # in English; blocks of other languages have more or fewer tokens
BLOCKS = 64  # of many texts, so that each rank gets about the same work
CHUNKS_PER_BLOCK = 32  # at most: enough for texts of the same length to come together


@dataclass(frozen=True)
class Encoded:
    """The embeddings that one rank made."""

    vectors: Tensor  # (n, d) float32 on the CPU
    rows: Tensor  # (n,) int64, positions among the texts of all ranks
    truncated: Tensor  # (n,) bool: the text was truncated


def encode(engine: Engine, tokenizer, texts: list[str], prompt: str, max_len: int, label: str = "embedding") -> Tensor:
    """Returns (texts, d) float32 on the CPU, in the order of texts, on every rank. Collective. See encode_share."""
    return gather(engine, encode_share(engine, tokenizer, texts, prompt, max_len, label))


def gather(engine: Engine, encoded: Encoded) -> Tensor:
    """Returns the embeddings of all ranks, (texts, d) float32 on the CPU, in the order of the texts. Collective."""
    return in_order(engine, encoded.vectors, encoded.rows)


def gather_lengths(engine: Engine, encoded: Encoded) -> Tensor:
    """Returns the L2 norms of the embeddings of all ranks, (texts,) float32 on the CPU. Collective."""
    return in_order(engine, encoded.vectors.norm(dim=1), encoded.rows)


def in_order(engine: Engine, values: Tensor, rows: Tensor) -> Tensor:
    """Returns what all ranks have for their texts, in the order of the texts, on the CPU. Collective. values: (n, …) of
    this rank. rows: as of Encoded."""
    world = engine.world
    counts = world.gather_ints([len(rows)])[:, 0].tolist()
    wire = engine.device if world.size > 1 else torch.device("cpu")
    values, rows = (world.gather_rows(part.to(wire), counts).cpu() for part in (values, rows))
    return sorted_by(rows, values)


def first_numbers(vectors: Tensor, size: int, unit: bool) -> Tensor:
    """Returns the first `size` numbers of every embedding (Matryoshka, Kusupati et al. 2022, arXiv:2205.13147), kept as
    those of a rank are. unit: they are normalised again. vectors: (n, d)"""
    kept, done = keep(len(vectors), size), 0
    for part in parts(vectors):
        first = part[:, :size]
        kept[done : done + len(part)] = normalize(first, dim=1) if unit else first
        done += len(part)
    return kept


def without_numbers(vectors: Tensor) -> int:
    """Counts the embeddings, (n, d), that hold a number which is none, or is infinite."""
    return sum(int((~part.isfinite().all(dim=1)).sum()) for part in parts(vectors))


def sorted_by(rows: Tensor, values: Tensor) -> Tensor:
    """Returns the values in the order of their rows. rows: (n,) the positions 0 to n - 1. values: (n, …)"""
    return torch.empty_like(values).index_copy_(0, rows, values)


def encode_share(
    engine: Engine,
    tokenizer,
    texts: list[str],
    prompt: str,
    max_len: int,
    label: str = "embedding",
    apart: bool = False,
) -> Encoded:
    """Embeds this rank's share of the texts. Collective where the engine's forward passes are. label: of the progress,
    which rank 0 shows. apart: all texts are this rank's own, and nothing is collective.

    Memory beside the vectors: a block's tokens and a chunk's activations.
    """
    assert not (apart and engine.lockstep), "forward passes of this engine are collective"
    world = World() if apart else engine.world
    distinct, number = _distinct(texts)
    weights = _estimated_tokens(distinct, len(prompt), max_len)
    blocks = cut(weights, CHUNK_TOKENS[engine.device.type])
    mine, turns = blocks[world.rank :: world.size], -(-len(blocks) // world.size)
    own = np.concatenate([*mine, np.empty(0, np.int64)])
    rows, copied = _rows_of(own, number)
    work = weights[own].cumsum()
    vectors, truncated, done = keep(len(rows), engine.embedder.size), torch.empty(len(rows), dtype=torch.bool), 0
    was_training = engine.embedder.training
    engine.embedder.eval()
    with torch.no_grad(), nullcontext() if engine.world.rank else Meter(label, len(texts)) as meter:
        for turn in range(turns):
            block = [distinct[i] for i in mine[turn]] if turn < len(mine) else []
            part, cut_texts = _embed_block(engine, tokenizer, block, prompt, max_len)
            if not block:
                continue
            vectors[done : done + len(block)], truncated[done : done + len(block)] = part, torch.tensor(cut_texts)
            done += len(block)
            if meter:
                _show(meter, done * len(texts) / len(own), work[done - 1], work[-1])
    engine.embedder.train(was_training)
    truncated[done:] = truncated[copied]
    for some in torch.from_numpy(copied).split(max(1, AT_ONCE // engine.embedder.size)):
        vectors[done : done + len(some)] = vectors[some]
        done += len(some)
    return Encoded(vectors, torch.from_numpy(rows), truncated)


def cut(weights: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cuts texts, longest first, into blocks of about equal weight: positions. The same for any number of ranks.
    weights: estimated tokens of each text. budget: tokens of a chunk."""
    if not len(weights):
        return []
    size = min(max(budget, int(weights.sum()) // BLOCKS), CHUNKS_PER_BLOCK * budget)
    order = np.argsort(-weights, kind="stable")
    block = (weights[order].cumsum() - weights[order]) // size
    return np.split(order, np.flatnonzero(np.diff(block)) + 1)


def _distinct(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Returns the distinct texts, and the position of each text among them, (texts,) int64."""
    position: dict[str, int] = {}
    positions = (position.setdefault(text, len(position)) for text in texts)
    number = np.fromiter(positions, np.int64, len(texts))
    return list(position), number


def _estimated_tokens(texts: list[str], prompt: int, max_len: int) -> np.ndarray:
    """(texts,) int64. prompt: its characters."""
    characters = np.fromiter(map(len, texts), np.int64, len(texts)) + prompt
    return np.minimum(characters // CHARACTERS_PER_TOKEN + 2, max_len)


def _embed_block(engine: Engine, tokenizer, texts: list[str], prompt: str, max_len: int) -> tuple[Tensor, list[bool]]:
    """Returns (texts, d) float32 on the CPU, and of each text whether it was truncated. Collective where the engine's
    forward passes are."""
    tokens, truncated = tokenize_each(texts, prompt, max_len, tokenizer)
    packed = engine.embedder.packing is not None
    chunks = make_chunks([len(ids) for ids in tokens], CHUNK_TOKENS[engine.device.type], packed)
    passes = len(chunks)
    if engine.lockstep:
        passes = int(engine.world.gather_ints([passes]).max())
    # the first tokens of every text, which the model does not pool
    skipped = 0 if engine.embedder.pool_prompt else prompt_tokens(prompt, tokenizer)
    parts = []
    for chunk in [*chunks, *[[] for _ in range(passes - len(chunks))]]:
        prompts = [skipped] * max(1, len(chunk)) if skipped else None
        part = engine.embed(*lay(chunk, tokens), seed=0, prompts=prompts)
        parts.append(part[: len(chunk)])
    if not texts:
        return torch.empty(0), []
    order = torch.tensor([i for chunk in chunks for i in chunk])
    embedded = torch.cat(parts).cpu()
    return torch.empty_like(embedded).index_copy_(0, order, embedded), truncated


def _show(meter: Meter, done: float, worked: float, all_work: float) -> None:
    """Shows texts of all ranks, as far as rank 0 can tell. worked, all_work: estimated tokens of rank 0."""
    per_second = done / max(meter.seconds, 1e-9)
    meter.show(int(done), worked, f"{per_second:,.0f} texts/s", left=all_work - worked)


def _rows_of(own: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of all texts that equal this rank's: one for each of `own`, then of further copies; and
    for the copies the index in `own`. own: distinct texts by position. number: of each text, its distinct one."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    first = np.searchsorted(ordered, own)
    more = np.searchsorted(ordered, own, side="right") - first - 1
    copied = np.repeat(np.arange(len(own)), more)
    within = np.arange(len(copied)) - np.repeat(more.cumsum() - more, more) + 1
    return np.concatenate([order[first], order[first[copied] + within]]), copied
