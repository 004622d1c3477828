"""A model folder as an encoder of texts, in one process or over ranks."""

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import sha256_of
from trainer.config.sections import ModelConfig
from trainer.model_folder.dense import WEIGHTS
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec
from trainer.model_folder.vocabulary import check_embedded

if TYPE_CHECKING:
    from trainer.engine.start import Runtime
    from trainer.inference.encode import Encoded

IDENTITY = ("config.json", "adapter_config.json", "tokenizer.json")  # beside the weights


class TextEncoder:
    """Encodes queries and passages with a model folder or hub id, which is loaded with the first text. Raises BadInput
    for a folder that cannot be used, at once; and for a dim above the model's, once it is loaded.

    precision: of matrix products, fp32, bf16 or fp16; `auto`: bf16 on a GPU that has units for it, else fp32. runtime:
    the ranks that embed, each its share; methods are collective then. Default: one process, on `device`.
    """

    apart: bool = False  # each rank embeds texts of its own: only loading is collective
    lengths_count: bool = False  # a store that keeps its vectors keeps their lengths

    dim: int | None  # the first numbers, normalised again where the model normalises
    cut: int  # texts so far that were truncated, of those that this rank embedded

    def __init__(
        self,
        config: ModelConfig,
        device: str = "auto",
        dim: int | None = None,
        precision: str = "auto",
        runtime: "Runtime | None" = None,
    ):
        self.config, self.device, self.dim, self.cut = config, device, dim, 0
        self.precision, self.runtime = precision, runtime
        self.folder = fetch(config.path, config.trust_remote_code)
        self.spec = read_spec(config, self.folder)
        check_embedded(self.spec, config.tokenizer)

    @cached_property
    def loaded(self) -> tuple:
        """The engine and the tokenizer."""
        from trainer.config.sections import OptimConfig
        from trainer.engine.join import alone
        from trainer.model.build import load_embedder
        from trainer.model.loading import Sources

        runtime = self.runtime or alone(self.device, self.precision)
        sources = Sources(reads=runtime.is_main) if runtime.world.size > 1 else None
        embedder, tokenizer, spec, _ = load_embedder(
            self.config, device=runtime.device, dtype=runtime.dtype, sources=sources
        )
        for note in spec.notes if runtime.is_main else ():
            say(f"{self.config.path}: {note}")
        if self.dim is not None and not 1 <= self.dim <= embedder.size:
            error = BadInput(f"--dim {self.dim}: {self.config.path} makes embeddings of {embedder.size} numbers")
            error.on_every_rank = True
            raise error
        return runtime.build(embedder, OptimConfig()), tokenizer

    def load_in(self, precision: str) -> None:
        """Loads the model again to compute in this precision. Collective."""
        from trainer.distributed.device import DTYPES

        self.precision = precision
        if self.runtime:
            self.runtime = replace(self.runtime, dtype=DTYPES[precision])
        del self.loaded
        assert self.loaded

    @property
    def name(self) -> str:
        """Returns the folder or hub id, for messages."""
        return self.config.path

    @property
    def identity(self) -> dict[str, str]:
        """Returns the facts that name the model in what was made for it."""
        return {"model": self.name, "model_sha256": self.fingerprint}

    @property
    def query_prompt(self) -> str:
        return self.spec.rules.query_prompt

    @property
    def passage_prompt(self) -> str:
        return self.spec.rules.passage_prompt

    @property
    def computes_in(self) -> str:
        """Returns fp32, bf16 or fp16: the precision of matrix products."""
        from trainer.distributed.device import precision_name

        return precision_name(self.loaded[0].dtype)

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
        """Returns (texts, d) float32, on every rank."""
        return self._gathered(self.query_share(texts))

    def passages(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
        """Returns (texts, d) float32, on every rank. prompt: in place of the model's own."""
        return self._gathered(self.passage_share(texts, prompt))

    def query_share(self, texts: list[str]) -> "Encoded":
        """Returns the embeddings of this rank's share of the texts."""
        rules = self.spec.rules
        return self._share(texts, rules.query_prompt, rules.query_max_len, "embedding queries")

    def passage_share(self, texts: list[str], prompt: str | None = None) -> "Encoded":
        """Returns the embeddings of this rank's share of the texts. prompt: in place of the model's own."""
        rules = self.spec.rules
        prompt = rules.passage_prompt if prompt is None else prompt
        return self._share(texts, prompt, rules.passage_max_len, "embedding documents")

    def _share(self, texts: list[str], prompt: str, max_len: int, label: str) -> "Encoded":
        from trainer.inference.encode import encode_share, first_numbers, without_numbers

        encoded = encode_share(*self.loaded, texts, prompt, max_len, label, self.apart)
        self.cut += int(encoded.truncated.sum())
        if bad := without_numbers(encoded.vectors):
            mend = "; use --precision fp32" if self.loaded[0].dtype else ""
            raise Failed(f"{self.config.path}: gives no number for {bad:,} of {len(encoded.rows):,} texts{mend}")
        if self.dim is None:
            return encoded
        return replace(encoded, vectors=first_numbers(encoded.vectors, self.dim, self.spec.normalize))

    def _gathered(self, encoded: "Encoded") -> np.ndarray:
        from trainer.inference.encode import gather, sorted_by

        if self.apart:
            return sorted_by(encoded.rows, encoded.vectors).numpy()
        return gather(self.loaded[0], encoded).numpy()
