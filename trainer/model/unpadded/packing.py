"""Packing: a transformer runs on texts end to end, without padding.

- A chunk is one sequence of all its tokens; the model sees a batch of one, with position ids that restart per text.
- transformers lets a model's attention be replaced by a registered function. Ours attends within each text.
- On a CPU dropout is replaced too, by one that costs little there.
"""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from data_prep.texts.tokenizer_rules import AFTER_PADDING
from trainer.distributed.device import send
from trainer.model.unpadded.attention import Noise, Pieces, Ragged, Run, Sees, keep
from trainer.model_folder.families import family_of

NAME = "embedfleet_packed"
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")  # names of configs
LARGEST_HEAD = 256  # numbers of a head that the ragged kernel takes


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

    def __init__(self, backbone: nn.Module, device: torch.device, dtype: torch.dtype | None):
        self.dtype = dtype  # of the ragged kernel
        self.noise = Noise() if device.type == "cpu" else None  # for every dropout, attention's included
        config = backbone.config
        config._attn_implementation = NAME
        family = family_of(backbone)
        self.first_position = (config.pad_token_id or 0) + 1 if config.model_type in AFTER_PADDING else 0
        self.token_types = family.token_types
        for parent in list(backbone.modules()) if self.noise else ():
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(parent, name, QuickDropout(child.p, self.noise).train(child.training))

    def inputs(self, ids: Tensor, runs: list[Run]) -> dict:
        """Returns the backbone's arguments for (tokens,) ids of texts that stand end to end."""
        position = torch.cat([torch.arange(run.length).repeat(run.count) for run in runs]) + self.first_position
        if self.noise:
            attention = Pieces(runs, self.noise)
        else:
            lengths = [run.length for run in runs for _ in range(run.count)]
            attention = Ragged(lengths, ids.device, self.dtype)
        arguments = {"input_ids": ids[None], "position_ids": send(position, ids.device)[None], "packed": attention}
        if self.token_types:
            arguments["token_type_ids"] = torch.zeros_like(ids)[None]
        return arguments


def why_padded(backbone: nn.Module, device: torch.device, dtype: torch.dtype | None, dropout: bool) -> str | None:
    """Returns the reason why texts cannot stand end to end; None where they can. dtype: of the matrix products, None:
    fp32. dropout: the model's own is on."""
    config, family = backbone.config, family_of(backbone)
    usual = getattr(config, "position_embedding_type", "absolute") in (None, "absolute", "rotary")
    if family is None or not family.plain_attention or not usual or getattr(config, "attn_logit_softcapping", None):
        return f"the attention of a {config.model_type} is not known, or more than a softmax of products"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there is no kernel for them on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "CUDA's kernel for them computes in bf16 or fp16: see train.precision"
    if find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no kernel for them; 2.10 has"
    if dropout and any(getattr(config, name, 0) for name in ATTENTION_DROPOUT):
        return "CUDA's kernel for them has no dropout, and model.dropout is on"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 8 or size > LARGEST_HEAD:
        return f"CUDA's kernel for them takes heads of 8, 16, … {LARGEST_HEAD} numbers, and these have {size}"
    return None


def packed_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, sliding_window=None, packed=None, **_
):
    """transformers' attention interface: (1, heads, tokens, size) each -> (1, tokens, heads, size) and None."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", False) and getattr(module.config, "is_causal", True)  # see ModelSpec
    return packed(query, key, value, scaling, Sees(causal, sliding_window), dropout), None


def register() -> None:
    """Registers the attention with transformers; calling it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
