"""Attention within texts that stand end to end: in pieces on a CPU, by a kernel for ragged texts on CUDA.

- On a CPU, texts of one length that stand side by side are a `Run`, whose attention is one batched product. Large
  products are split into pieces: some texts of a run, or some heads of a long text, at a time.
- Probabilities are not kept for the backward pass but computed again (as in FlashAttention, Dao et al. 2022,
  arXiv:2205.14135, algorithm 4).
"""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.distributed.device import send

PROBABILITIES = 2**24  # of one product at most (64 MiB)


class Run(NamedTuple):
    """Texts of one length that stand side by side."""

    start: int  # first token
    count: int  # texts
    length: int  # tokens of each text

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


def runs_of(lengths: list[int]) -> list[Run]:
    """Splits texts into runs of equal lengths, in order."""
    runs, start = [], 0
    for length, same in groupby(lengths):
        runs.append(Run(start, len(list(same)), length))
        start = runs[-1].stop
    return runs


class Noise:
    """Dropout noise of 16 random bits per element: several times faster than torch's generator on a CPU.
    The probability is exact to 1 / 65536. The same seed yields the same bits in the same order."""

    def __init__(self):
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        self.source = np.random.SFC64(seed)

    def state(self) -> dict:
        """Position of the generator, for restore()."""
        return self.source.state

    def restore(self, state: dict) -> None:
        self.source.state = state

    def bits(self, count: int) -> Tensor:
        """(count,) int16, uniform."""
        return torch.from_numpy(self.source.random_raw((count + 3) // 4).view(np.int16)[:count])


def keep(bits: Tensor, p: float, like: Tensor) -> Tensor:
    """Returns 1 where an element stays and, with probability p, 0 where it is dropped; shape and dtype of `like`.
    Numbers, not booleans: multiplying by them is several times faster than a boolean mask."""
    return torch.ge(bits, round(p * 65536) - 32768, out=torch.empty(bits.shape, dtype=like.dtype)).view(like.shape)


@dataclass
class Sees:
    """The tokens of its text that a token sees."""

    causal: bool  # none behind it
    window: int | None  # those less than this many tokens away; None: all

    @property
    def sides(self) -> tuple[int, int]:
        """Tokens seen on the left and on the right, -1 for all: the kernel's form."""
        reach = -1 if self.window is None else self.window - 1
        return reach, 0 if self.causal else reach

    def hidden(self, length: int, device: torch.device) -> Tensor | None:
        """(length, length) bool: pairs of a token and one that it does not see; None: it sees all."""
        left, right = (None if side < 0 or side >= length - 1 else side for side in self.sides)
        if left is None and right is None:
            return None
        ahead = torch.arange(length, device=device) - torch.arange(length, device=device)[:, None]
        hidden = torch.zeros(length, length, dtype=torch.bool, device=device)
        if right is not None:
            hidden |= ahead > right
        return hidden if left is None else hidden | (ahead < -left)


class Pieces:
    """Attention on a CPU of one chunk's texts, with dropout from `noise`."""

    def __init__(self, runs: list[Run], noise: Noise):
        self.runs, self.noise = runs, noise

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sees: Sees, dropout: float) -> Tensor:
        """(1, heads, tokens, size) each -> (1, tokens, heads, size)."""
        if key.shape[1] != query.shape[1]:  # grouped-query attention: each key serves several query heads
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        with torch.autocast(query.device.type, enabled=False):  # in the precision that the products before it chose
            return _PackedAttention.apply(query, key, value, self.runs, scaling, sees, dropout, self.noise)


class Ragged:
    """Attention of one chunk's texts by torch's kernel for texts of different lengths, in bf16 or fp16 on CUDA."""

    def __init__(self, lengths: list[int], device: torch.device, dtype: torch.dtype):
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        self.ends, self.longest, self.dtype = send(torch.from_numpy(ends), device), max(lengths), dtype

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sees: Sees, dropout: float) -> Tensor:
        """(1, heads, tokens, size) each -> (1, tokens, heads, size)."""
        assert not dropout, "the kernel has none: see Packing.fits"
        from torch.nn.attention import varlen

        parts = (x[0].transpose(0, 1).to(self.dtype) for x in (query, key, value))  # (tokens, heads, size)
        grouped = key.shape[1] != query.shape[1]
        reach = {"scale": scaling, "window_size": sees.sides, "enable_gqa": grouped}
        return varlen.varlen_attn(*parts, self.ends, self.ends, self.longest, self.longest, **reach)[None]


class _PackedAttention(torch.autograd.Function):
    """Attention with fp32 products, also in a bf16 model: small products are faster in fp32, the softmax is exact."""

    @staticmethod
    def forward(ctx, query, key, value, runs, scaling, sees, dropout, noise):
        _, heads, tokens, size = query.shape  # query, key, value: (1, heads, tokens, size)
        out = query.new_empty(1, tokens, heads, size)
        drawn = []
        for run, part in _pieces(runs, heads):
            q, k, v = (_take(x, run, part) for x in (query, key, value))
            weights = _probabilities(q, k, scaling, sees)  # (texts x heads, length, length)
            if dropout:
                drawn.append(noise.bits(weights.numel()))
                weights.mul_(keep(drawn[-1], dropout, weights))
                v = v * (1 / (1 - dropout))
            _put(out, torch.bmm(weights, v), run, part)
        ctx.save_for_backward(query, key, value, out, *drawn)
        ctx.facts = runs, scaling, sees, dropout
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        query, key, value, out, *drawn = ctx.saved_tensors
        runs, scaling, sees, dropout = ctx.facts
        heads = query.shape[1]
        grads = [torch.empty_like(out) for _ in range(3)]
        for i, (run, part) in enumerate(_pieces(runs, heads)):
            q, k, v = (_take(x, run, part) for x in (query, key, value))
            d_out, o = (_take(x.transpose(1, 2), run, part) for x in (upstream, out))
            # gradient of the softmax: the row sums of weights x d_weights equal those of out x d_out
            total = (d_out * o).sum(dim=-1, keepdim=True)
            weights = _probabilities(q, k, scaling, sees)
            dropped = weights
            if dropout:
                d_out = d_out * (1 / (1 - dropout))
                stays = keep(drawn[i], dropout, weights)
                dropped = weights * stays
            d_v = torch.bmm(dropped.transpose(1, 2), d_out)
            d_weights = torch.bmm(d_out, v.transpose(1, 2))
            if dropout:
                d_weights.mul_(stays)
            d_scores = d_weights.sub_(total).mul_(weights)
            q, k = q * scaling, k * scaling
            for grad, product in zip(grads, (torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q), d_v)):
                _put(grad, product, run, part)
        return *(grad.transpose(1, 2) for grad in grads), None, None, None, None, None


def _pieces(runs: list[Run], heads: int):
    """Yields (run, slice of heads) whose probabilities are computed in one product."""
    for run in runs:
        of_a_head = run.length * run.length  # probabilities of one text
        texts_at_once = max(1, PROBABILITIES // (of_a_head * heads))
        for first in range(0, run.count, texts_at_once):
            part = Run(run.start + first * run.length, min(texts_at_once, run.count - first), run.length)
            heads_at_once = max(1, min(heads, PROBABILITIES // (of_a_head * part.count)))
            for head in range(0, heads, heads_at_once):
                yield part, slice(head, min(heads, head + heads_at_once))


def _take(x: Tensor, run: Run, heads: slice) -> Tensor:
    """(1, heads, tokens, size) -> (texts x heads, length, size) of a piece, fp32."""
    part = x[0, heads, run.start : run.stop]
    count, _, size = part.shape
    return part.view(count, run.count, run.length, size).transpose(0, 1).reshape(-1, run.length, size).float()


def _put(out: Tensor, part: Tensor, run: Run, heads: slice) -> None:
    """Writes (texts x heads, length, size) of a piece into `out`, (1, tokens, heads, size): the inverse of _take."""
    count = heads.stop - heads.start
    target = out[0, run.start : run.stop, heads].view(run.count, run.length, count, -1)
    target.copy_(part.view(run.count, count, run.length, -1).transpose(1, 2))


def _probabilities(q: Tensor, k: Tensor, scaling: float, sees: Sees) -> Tensor:
    scores = torch.bmm(q * scaling, k.transpose(1, 2))
    hidden = sees.hidden(q.shape[1], q.device)
    return (scores if hidden is None else scores.masked_fill_(hidden, float("-inf"))).softmax(dim=-1)
