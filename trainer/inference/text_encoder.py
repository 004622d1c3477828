"""A model folder as a function from texts to embeddings, in one process."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_of
from trainer.config.sections import ModelConfig
from trainer.model_folder.dense import WEIGHTS
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec

if TYPE_CHECKING:
    import numpy as np

IDENTITY = ("config.json", "adapter_config.json", "tokenizer.json")  # beside the weights


class TextEncoder:
    """The queries' and the passages' side of a model folder or hub id, loaded when the first text comes.

    dim: Matryoshka: the first so many numbers of each embedding, at length 1 again where the model normalises
    (Kusupati et al. 2022, arXiv:2205.13147). cut: texts so far that were longer than the model reads.
    Raises BadInput for a folder that cannot be used, at once; and for a dim above the model's, once it is known.
    """

    def __init__(self, config: ModelConfig, device: str = "auto", dim: int | None = None):
        self.config, self.device, self.dim, self.cut = config, device, dim, 0
        self.folder = fetch(config.path, config.trust_remote_code)
        self.spec = read_spec(config, self.folder)

    @cached_property
    def loaded(self) -> tuple:
        """(engine of one process, tokenizer)."""
        import torch

        from trainer.config.sections import OptimConfig
        from trainer.distributed.collectives import World
        from trainer.distributed.device import pick_device
        from trainer.engine.torch_engine import TorchEngine
        from trainer.model.build import load_embedder

        embedder, tokenizer, spec, _ = load_embedder(self.config)
        for note in spec.notes:
            say(f"{self.config.path}: {note}")
        if self.dim is not None and not 1 <= self.dim <= embedder.size:
            raise BadInput(f"--dim {self.dim}: {self.config.path} makes embeddings of {embedder.size} numbers")
        return TorchEngine(embedder, OptimConfig(), World(), torch.device(pick_device(self.device)), None), tokenizer

    @property
    def size(self) -> int:
        """d of the embeddings."""
        return self.dim or self.loaded[0].embedder.size

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides an embedding apart from prompt and length: weights, tokenizer, pooling, norm."""
        folder = Path(self.folder)
        files = sorted([*folder.rglob("*.safetensors"), *(p for name in IDENTITY if (p := folder / name).is_file())])
        files += sorted(folder.rglob("*.py")) if self.spec.own_code else []
        facts = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
        facts += [self.spec.pooling, str(self.spec.normalize)]
        facts += [f"{d.bias} {d.activation} {sha256_of(Path(d.folder) / WEIGHTS)}" for d in self.spec.dense]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def queries(self, texts: list[str]) -> "np.ndarray":
        """(texts, d) float32."""
        return self._encode(texts, self.spec.query_prompt, self.spec.query_max_len)

    def passages(self, texts: list[str]) -> "np.ndarray":
        """(texts, d) float32."""
        return self._encode(texts, self.spec.passage_prompt, self.spec.passage_max_len)

    def _encode(self, texts: list[str], prompt: str, max_len: int) -> "np.ndarray":
        from torch.nn.functional import normalize

        from trainer.inference.encode import encode
        from trainer.model.tokenizer import tokenize

        engine, tokenizer = self.loaded
        self.cut += tokenize(texts, prompt, max_len, tokenizer)[1]
        vectors = encode(engine, tokenizer, texts, prompt, max_len)
        if self.dim is not None:
            vectors = vectors[:, : self.dim]
            vectors = normalize(vectors, dim=1) if self.spec.normalize else vectors
        return vectors.numpy()
