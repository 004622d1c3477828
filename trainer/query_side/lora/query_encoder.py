"""The query side of a model, with LoRA adapters that are trained; documents keep the vectors of the model itself."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data_prep.common.errors import BadInput
from trainer.config.sections import LoraConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.start import Runtime
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.inference.text_encoder import TextEncoder
from trainer.model.adapters import merged
from trainer.model.build import load_embedder
from trainer.model.loading import Sources
from trainer.model.save import save_embedder
from trainer.model.tokenizer import prompt_tokens, tokenize

RANK = LoraConfig().r
SCALE = LoraConfig().alpha / RANK  # alpha of a rank


class QueryEncoder:
    """A model that embeds queries, loaded a second time to be trained. Raises BadInput for a model that cannot be."""

    def __init__(self, encoder: TextEncoder, runtime: Runtime, rank: int | None, optim: OptimConfig):
        """rank: of the adapters; None: RANK. Collective."""
        check_whole(encoder)
        self.rank = rank or RANK
        lora = LoraConfig(r=self.rank, alpha=SCALE * self.rank)
        config = encoder.config.model_copy(update={"finetune": "lora", "lora": lora})
        spec, sources = replace(encoder.spec, notes=[]), Sources(reads=runtime.is_main)
        loaded = load_embedder(config, None, runtime.device, runtime.dtype, spec=spec, sources=sources)
        embedder, self.tokenizer, self.spec, self.untrained = loaded
        self.engine = runtime.build(embedder, optim)

    def vectors(self, texts: list[str]) -> Tensor:
        """Returns (texts, d) float32 of length 1 on the CPU, on every rank. Collective."""
        rules, label = self.spec.rules, "embedding queries"
        encoded = encode(self.engine, self.tokenizer, texts, rules.query_prompt, rules.query_max_len, label)
        return normalize(encoded, dim=1)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        rules = self.spec.rules
        return tokenize(texts, rules.query_prompt, rules.query_max_len, self.tokenizer)[0]

    @property
    def skipped_tokens(self) -> int | None:
        """First tokens of each query that are not pooled; None: all are."""
        return None if self.spec.pool_prompt else prompt_tokens(self.spec.rules.query_prompt, self.tokenizer)

    def state(self) -> dict[str, Tensor]:
        """Returns a copy of the trained numbers by name."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.engine.named.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.engine.named.items():
                parameter.copy_(state[name])

    def write(self, folder: Path) -> None:
        """Writes the model with its adapters merged into its weights. Nothing can be trained afterwards."""
        embedder, cpu = self.engine.embedder.to("cpu"), torch.device("cpu")
        embedder.backbone, embedder.adapter = merged(embedder.adapter), None
        embedder.requires_grad_(True)
        weights = TorchEngine(embedder, OptimConfig(), World(), cpu, None).weights()
        save_embedder(folder, weights | self.untrained, embedder, copy.deepcopy(self.tokenizer), self.spec)


def check_whole(encoder: TextEncoder) -> None:
    """Raises BadInput, on every rank, for a model that is an adapter itself, or whose vectors are cut."""
    reason = None
    if encoder.spec.is_adapter:
        reason = "is an adapter of another model; merge it first (python -m trainer.merge)"
    elif encoder.dim is not None:
        reason = f"the collection holds the first {encoder.dim} numbers of its vectors; use --map linear or mlp"
    if reason:
        error = BadInput(f"--map lora: {encoder.config.path}: {reason}")
        error.on_every_rank = True
        raise error
