"""Packing: a transformer runs on texts end to end, without padding, and with dropout that costs little on a CPU.

- A chunk is one sequence of all its tokens; the model sees a batch of one, with position ids that restart per text.
- transformers lets a model's attention be replaced by a registered function. Ours attends within each text.
- Texts of one length that stand side by side are a `Run`, whose attention is one batched product.
- Large products are split into pieces: some texts of a run, or some heads of a long text, at a time.
- Attention probabilities are not kept for the backward pass but computed again (as in FlashAttention, Dao et al. 2022,
  arXiv:2205.14135, algorithm 4).
"""

from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.texts.tokenizer_rules import AFTER_PADDING
from trainer.model_folder.families import family_of

NAME = "embedfleet_packed"
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


class QuickDropout(nn.Module):
    """nn.Dropout that draws from Noise."""

    def __init__(self, p: float, noise: Noise):
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return _Dropout.apply(x, self.noise.bits(x.numel()), self.p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, p):
        ctx.save_for_backward(bits)
        ctx.p = p
        return keep(bits, p, x).mul_(x).mul_(1 / (1 - p))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (bits,) = ctx.saved_tensors
        return keep(bits, ctx.p, upstream).mul_(upstream).mul_(1 / (1 - ctx.p)), None, None


class Packing:
    """Makes a backbone attend within texts that stand end to end."""

    def __init__(self, backbone: nn.Module):
        self.noise = Noise()  # for every dropout, attention's included
        config = backbone.config
        config._attn_implementation = NAME
        family = family_of(backbone)
        self.first_position = (config.pad_token_id or 0) + 1 if config.model_type in AFTER_PADDING else 0
        self.token_types = family.token_types
        for parent in list(backbone.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, QuickDropout(child.p, self.noise).train(child.training))

    @staticmethod
    def fits(backbone: nn.Module, device: torch.device) -> bool:
        """True on a CPU for families with plain attention, without sliding windows and relative positions."""
        config = backbone.config
        family = family_of(backbone)
        plain = getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        windowed = getattr(config, "use_sliding_window", False)
        return device.type == "cpu" and family is not None and family.plain_attention and plain and not windowed

    def inputs(self, ids: Tensor, runs: list[Run]) -> dict:
        """Returns the backbone's arguments for (tokens,) ids of texts that stand end to end."""
        position = torch.cat([torch.arange(run.length).repeat(run.count) for run in runs]) + self.first_position
        arguments = {"input_ids": ids[None], "position_ids": position[None], "packed": (runs, self.noise)}
        if self.token_types:
            arguments["token_type_ids"] = torch.zeros_like(ids)[None]
        return arguments


def packed_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, packed=None, **_):
    """transformers' attention interface: (1, heads, tokens, size) each -> (1, tokens, heads, size) and None."""
    runs, noise = packed
    if key.shape[1] != query.shape[1]:  # grouped-query attention: each key serves several query heads
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", False) and getattr(module.config, "is_causal", True)  # see ModelSpec
    with torch.autocast(query.device.type, enabled=False):  # in the precision that the products before it chose
        return _PackedAttention.apply(query, key, value, runs, scaling, causal, dropout, noise), None


class _PackedAttention(torch.autograd.Function):
    """Attention with fp32 products, also in a bf16 model: small products are faster in fp32, the softmax is exact."""

    @staticmethod
    def forward(ctx, query, key, value, runs, scaling, causal, dropout, noise):
        _, heads, tokens, size = query.shape  # query, key, value: (1, heads, tokens, size)
        out = query.new_empty(1, tokens, heads, size)
        drawn = []
        for run, part in _pieces(runs, heads):
            q, k, v = (_take(x, run, part) for x in (query, key, value))
            weights = _probabilities(q, k, scaling, causal)  # (texts x heads, length, length)
            if dropout:
                drawn.append(noise.bits(weights.numel()))
                weights.mul_(keep(drawn[-1], dropout, weights))
                v = v * (1 / (1 - dropout))
            _put(out, torch.bmm(weights, v), run, part)
        ctx.save_for_backward(query, key, value, out, *drawn)
        ctx.facts = runs, scaling, causal, dropout
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        query, key, value, out, *drawn = ctx.saved_tensors
        runs, scaling, causal, dropout = ctx.facts
        heads = query.shape[1]
        grads = [torch.empty_like(out) for _ in range(3)]
        for i, (run, part) in enumerate(_pieces(runs, heads)):
            q, k, v = (_take(x, run, part) for x in (query, key, value))
            d_out, o = (_take(x.transpose(1, 2), run, part) for x in (upstream, out))
            # gradient of the softmax: the row sums of weights x d_weights equal those of out x d_out
            total = (d_out * o).sum(dim=-1, keepdim=True)
            weights = _probabilities(q, k, scaling, causal)
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


def _probabilities(q: Tensor, k: Tensor, scaling: float, causal: bool) -> Tensor:
    scores = torch.bmm(q * scaling, k.transpose(1, 2))
    if causal:
        length = q.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(ahead, float("-inf"))
    return scores.softmax(dim=-1)


def register() -> None:
    """Registers the attention with transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
