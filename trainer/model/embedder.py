"""The embedder: transformer, pooling, dense layers, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.distributed.device import send
from trainer.model import adapters
from trainer.model.base_dtype import Rounded
from trainer.model.loading import Sources
from trainer.model.recompute import recompute
from trainer.model.unpadded.attention import Run, runs_of
from trainer.model.unpadded.packing import Packing, register, why_padded
from trainer.model_folder.families import family_of

PADDING = -1  # no token has this id


def pool(hidden: Tensor, mask: Tensor, how: str, prompts: Tensor | None = None) -> Tensor:
    """(texts, tokens, d) hidden states and (texts, tokens) 0/1 mask -> (texts, d). Padding may stand on either side.

    mean: over real tokens. cls: the first real token. last: the last real token. weighted_mean: over real tokens, the
    n-th with weight n (Muennighoff 2022, arXiv:2202.08904, eq. 2).

    prompts: (texts,) first real tokens of each text that are left out, as sentence-transformers' include_prompt=False
    does: the others keep their n, and a text of nothing else has the mean 0 and its first token as cls.
    """
    real = mask.cumsum(dim=1)  # n of each token, from 1
    kept = mask if prompts is None else mask * (real > prompts[:, None])
    if how in ("mean", "weighted_mean"):
        weights = kept.to(hidden.dtype) if how == "mean" else (real * kept).to(hidden.dtype)
        weights = weights.unsqueeze(-1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if how == "cls":
        seen = torch.where(kept.any(dim=1, keepdim=True), kept, mask).bool()
        index = torch.where(seen, positions, mask.shape[1]).amin(dim=1)
    elif how == "last":
        index = torch.where(mask.bool(), positions, -1).amax(dim=1)
    else:
        raise AssertionError(how)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), index]


def pool_packed(hidden: Tensor, runs: list[Run], how: str, prompts: Tensor | None = None) -> Tensor:
    """Same as pool, for the (tokens, d) hidden states of texts that stand end to end."""
    pooled = []
    left_out = prompts.split([run.count for run in runs]) if prompts is not None else [None] * len(runs)
    for run, part, prompt in zip(runs, hidden.split([run.count * run.length for run in runs]), left_out):
        texts = part.view(run.count, run.length, -1)
        if prompt is not None and how != "last":
            pooled.append(pool(texts, torch.ones(texts.shape[:2], dtype=torch.int64, device=texts.device), how, prompt))
        elif how == "weighted_mean":
            weights = torch.arange(1, run.length + 1, dtype=texts.dtype, device=texts.device)
            pooled.append((texts * (weights / weights.sum())[:, None]).sum(dim=1))
        else:
            pooled.append(texts.mean(dim=1) if how == "mean" else texts[:, 0 if how == "cls" else -1])
    return torch.cat(pooled)


def _padded(tokens: Tensor, lengths: list[int]) -> Tensor:
    """Texts end to end -> (texts, longest) ids. Texts of one length are not copied one by one."""
    if len({*lengths}) == 1:
        return tokens.view(len(lengths), -1)
    return pad_sequence(tokens.split(lengths), batch_first=True, padding_value=PADDING)


def finish(pooled: Tensor, dense_layers: nn.ModuleDict, normalize: bool) -> Tensor:
    """(texts, pooled size) -> (texts, d): dense layers and normalisation, in fp32."""
    for layer in dense_layers.values():
        pooled = layer(pooled)
    return F.normalize(pooled, dim=1) if normalize else pooled


class Embedder(nn.Module):
    """Token ids -> one fp32 embedding per text, of length 1 where the model normalises."""

    def __init__(
        self,
        backbone: nn.Module,
        dense_layers: nn.ModuleDict,
        pooling: str,
        normalize: bool,
        model_dropout: bool = False,
        pool_prompt: bool = True,
    ):
        super().__init__()
        self.backbone, self.dense = backbone, dense_layers  # dense: layers behind the pooling, see dense.py
        self.model_dropout = model_dropout  # training runs the model's own dropout
        self.adapter: adapters.Adapter | None = None  # trained in place of the model's own weights
        self.quantised: dict[str, nn.Module] = {}  # quantised layers by name
        self.sources = Sources(reads=True)  # of parameters that no engine has filled yet
        self.rounded: Rounded | None = None  # the frozen weights that are stored in bf16
        self.recomputed: list[nn.Module] = []  # blocks that compute again in the backward pass
        self.packing: Packing | None = None  # texts run without padding, see pack()
        self.padded_because: str | None = None
        # A decoder would keep keys and values of every layer, which only generation needs.
        self.own_use_cache = getattr(backbone.config, "use_cache", None)
        backbone.config.use_cache = False
        self.pooling, self.normalize = pooling, normalize
        self.pool_prompt = pool_prompt  # the tokens of a text's prompt are pooled too
        family = family_of(backbone)
        # Tokens see only earlier ones, so padding on the right needs no mask, which would keep fast kernels away.
        self.causal = family is not None and family.causal and getattr(backbone.config, "is_causal", True)

    @property
    def size(self) -> int:
        """d, the length of an embedding."""
        return list(self.dense.values())[-1].linear.out_features if self.dense else self.pooled_size

    @property
    def pooled_size(self) -> int:
        return self.backbone.config.hidden_size

    def train(self, mode: bool = True) -> "Embedder":
        """Dropout on (where the run asks for any) or off; layers are recomputed in training only."""
        self.training = mode
        self.backbone.train(mode and self.model_dropout)
        self.dense.train(mode)
        for module in self.recomputed:
            module.training = mode
        for module in self.quantised.values():  # see quantization.layers
            module.training = True
        for name, module in self.backbone.named_modules():
            if adapters.is_dropout(name):
                module.training = mode
        self.noisy = mode and (self.model_dropout or (self.adapter is not None and self.adapter.dropout))
        return self

    def recompute(self) -> None:
        """Makes the blocks keep their inputs only, and compute the rest again in the backward pass."""
        self.recomputed = recompute(self)
        self.train(self.training)

    def stored(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint by name: the adapter, or all weights."""
        if self.adapter is None:
            return self.backbone.state_dict(keep_vars=True) | self.dense.state_dict(keep_vars=True)
        return self.trained()

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """All parameters by their names in a checkpoint."""
        return dict([*self.backbone.named_parameters(), *self.dense.named_parameters()])

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters_by_name().items() if p.requires_grad}

    def pack(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Packs texts from now on, if that is possible on this device. dtype: of the matrix products, None: fp32."""
        self.padded_because = why_padded(self.backbone, device, dtype, self.model_dropout)
        if not self.padded_because:
            register()
            self.packing = Packing(self.backbone, device, dtype)

    def forward(
        self,
        tokens: Tensor,
        lengths: list[int],
        seed: int,
        autocast: torch.dtype | None = None,
        prompts: list[int] | None = None,
    ) -> Tensor:
        """Texts end to end -> (texts, d) float32 on the model's device. tokens: (sum of lengths,) ids on the CPU; equal
        lengths should stand side by side. seed: of dropout. autocast: dtype of the matrix products, None for fp32.
        prompts: tokens of each text's prompt, which the pooling leaves out; None: it leaves out none."""
        device = next(self.backbone.parameters()).device
        if self.noisy:  # with dropout off the modules stay in eval mode, which is exact for every family
            torch.manual_seed(seed)
        if self.packing:
            if self.packing.noise:
                self.packing.noise.reseed(seed)
            runs = runs_of(lengths)
            inputs, mask = self.packing.inputs(send(tokens, device), runs), None
        else:
            ids = send(_padded(tokens, lengths), device)
            mask = (ids != PADDING).long()
            inputs = {"input_ids": ids.clamp(min=0)} | ({} if self.causal else {"attention_mask": mask})
        # The cast of a weight is used once per pass, so caching it would only hold a second copy (of a gathered
        # shard, under ZeRO-3).
        with torch.autocast(device.type, autocast, enabled=autocast is not None, cache_enabled=False):
            hidden = self.backbone(**inputs).last_hidden_state.float()
        left_out = None if prompts is None else send(torch.tensor(prompts), device)
        if mask is None:
            pooled = pool_packed(hidden[0], runs, self.pooling, left_out)
        else:
            pooled = pool(hidden, mask, self.pooling, left_out)
        return finish(pooled, self.dense, self.normalize)
