"""A model folder as an encoder of texts, in one process."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_of
from trainer.config.sections import ModelConfig
from trainer.model_folder.dense import WEIGHTS
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec
from trainer.model_folder.vocabulary import check_embedded

IDENTITY = ("config.json", "adapter_config.json", "tokenizer.json")  # beside the weights


class TextEncoder:
    """Encodes queries and passages with a model folder or hub id, which is loaded with the first text. Raises BadInput
    for a folder that cannot be used, at once; and for a dim above the model's, once it is loaded."""

    dim: int | None  # Matryoshka (Kusupati et al. 2022, arXiv:2205.13147): the first numbers, normalised again
    cut: int  # texts so far that were truncated

    def __init__(self, config: ModelConfig, device: str = "auto", dim: int | None = None):
        self.config, self.device, self.dim, self.cut = config, device, dim, 0
        self.folder = fetch(config.path, config.trust_remote_code)
        self.spec = read_spec(config, self.folder)
        check_embedded(self.spec, config.tokenizer)

    @cached_property
    def loaded(self) -> tuple:
        """The engine of one process, and the tokenizer."""
        import torch

        from trainer.config.sections import OptimConfig
        from trainer.distributed.collectives import World
        from trainer.distributed.device import choose_kernels, pick_device
        from trainer.engine.torch_engine import TorchEngine
        from trainer.model.build import load_embedder

        device = torch.device(pick_device(self.device))
        choose_kernels(device.type)
        embedder, tokenizer, spec, _ = load_embedder(self.config, device=device)
        for note in spec.notes:
            say(f"{self.config.path}: {note}")
        if self.dim is not None and not 1 <= self.dim <= embedder.size:
            raise BadInput(f"--dim {self.dim}: {self.config.path} makes embeddings of {embedder.size} numbers")
        return TorchEngine(embedder, OptimConfig(), World(), device, None), tokenizer

    @property
    def size(self) -> int:
        """Numbers of an embedding (d)."""
        return self.dim or self.loaded[0].embedder.size

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of all that decides an embedding beside prompt and length: weights, tokenizer, pooling, norm."""
        folder = Path(self.folder)
        files = sorted([*folder.rglob("*.safetensors"), *(p for name in IDENTITY if (p := folder / name).is_file())])
        files += sorted(folder.rglob("*.py")) if self.spec.own_code else []
        facts = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
        facts += [self.spec.pooling, str(self.spec.normalize)]
        facts += [] if self.spec.pool_prompt else ["pooled without the prompt"]
        facts += [f"{d.bias} {d.activation} {sha256_of(Path(d.folder) / WEIGHTS)}" for d in self.spec.dense]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def queries(self, texts: list[str]) -> np.ndarray:
        """Returns (texts, d) float32."""
        return self._encode(texts, self.spec.rules.query_prompt, self.spec.rules.query_max_len)

    def passages(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
        """Returns (texts, d) float32. prompt: in place of the model's own."""
        rules = self.spec.rules
        return self._encode(texts, rules.passage_prompt if prompt is None else prompt, rules.passage_max_len)

    def _encode(self, texts: list[str], prompt: str, max_len: int) -> np.ndarray:
        from torch.nn.functional import normalize

        from trainer.inference.encode import embed, unpooled
        from trainer.model.tokenizer import tokenize

        engine, tokenizer = self.loaded
        tokens, truncated = tokenize(texts, prompt, max_len, tokenizer)
        self.cut += truncated
        vectors = embed(engine, tokens, len(texts), unpooled(engine, tokenizer, prompt))
        if self.dim is not None:
            vectors = vectors[:, : self.dim]
            vectors = normalize(vectors, dim=1) if self.spec.normalize else vectors
        return vectors.numpy()
