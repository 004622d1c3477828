"""Chunks: the texts that one forward pass takes."""

import math

import torch
from torch import Tensor

CHUNK_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}  # per forward pass at most, by the size of the caches


def chunk_tokens(most: int, budget: int) -> int:
    """Returns the tokens of a chunk, at most `most`: as many as let whole chunks fill the budget of kept activations.
    Of a budget of 3,000 and chunks of 2,048 one would be kept; of chunks of 1,500 two are."""
    return budget // math.ceil(budget / most)


def make_chunks(lengths: list[int], budget: int, packed: bool) -> list[list[int]]:
    """Splits texts, longest first, into chunks of at most `budget` tokens (one text may cost more alone): indices."""
    chunks: list[list[int]] = []
    cost = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        width = lengths[i] if packed or not chunks else lengths[chunks[-1][0]]  # sorted: the first is the longest
        if not chunks or cost + width > budget:
            chunks.append([])
            cost, width = 0, lengths[i]
        chunks[-1].append(i)
        cost += width
    return chunks


def cost_of(chunk: list[int], lengths: list[int], packed: bool) -> int:
    """Tokens of a chunk's forward pass: those of its texts, and the padding where it is not packed."""
    return sum(lengths[i] for i in chunk) if packed else len(chunk) * lengths[chunk[0]]


def kept_chunks(costs: list[int], budget: int) -> set[int]:
    """Returns the chunks whose activations are kept, `budget` tokens at most: the largest first, then what still fits.
    Every token that is not kept is embedded twice."""
    kept, used = set(), 0
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        if used + costs[i] <= budget:
            kept.add(i)
            used += costs[i]
    return kept


def lay(chunk: list[int], tokens: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Returns the token ids of a chunk's texts end to end, and their lengths; an empty chunk becomes one token."""
    texts = [tokens[i] for i in chunk] or [[0]]
    return torch.tensor([token for text in texts for token in text]), [len(text) for text in texts]
