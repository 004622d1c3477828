"""A closed model as an encoder of texts: its vectors come from an embeddings endpoint."""

import hashlib
from functools import cached_property

import numpy as np

from data_prep.model_server.embeddings import EmbeddingConfig, TextVectors
from trainer.distributed.collectives import World

WORD = "size"  # asked for first, as its vector shows how many numbers the model gives


class EndpointEncoder:
    """Encodes queries and passages by an endpoint. Rank 0 alone asks it; methods are collective.

    A collection may hold the first numbers alone of each vector (Matryoshka, as OpenAI's `dimensions`): `dim`.
    """

    lengths_count = True

    def __init__(self, config: EmbeddingConfig, query_prompt: str = "", passage_prompt: str = ""):
        """prompts: put before every query and passage. Raises BadInput, Failed: see TextVectors."""
        self.vectors = TextVectors(config)
        self.query_prompt, self.passage_prompt = query_prompt, passage_prompt
        self.dim: int | None = None
        self.world = World()

    @property
    def model(self) -> str:
        return self.vectors.config.model

    @property
    def name(self) -> str:
        return f"{self.model} at {self.vectors.server.url}"

    @property
    def identity(self) -> dict[str, str]:
        """Returns the facts that name the model. Its address is none: a model may be served at several."""
        return {"endpoint_model": self.model}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"endpoint {self.model}".encode()).hexdigest()

    @cached_property
    def own_size(self) -> int:
        return self._of([WORD]).shape[1]

    @property
    def size(self) -> int:
        """Numbers of a vector (d)."""
        return self.dim or self.own_size

    def queries(self, texts: list[str]) -> np.ndarray:
        """Returns (texts, d) float32, on every rank."""
        return self._cut(self._of([self.query_prompt + text for text in texts]))

    def passages(self, texts: list[str], prompt: str | None = None) -> np.ndarray:
        """Returns (texts, d) float32, on every rank. prompt: in place of the passage prompt."""
        before = self.passage_prompt if prompt is None else prompt
        return self._cut(self._of([before + text for text in texts]))

    def _of(self, texts: list[str]) -> np.ndarray:
        return self.world.on_first(lambda: self.vectors.of(texts))

    def _cut(self, vectors: np.ndarray) -> np.ndarray:
        if self.dim is None:
            return vectors
        first = vectors[:, : self.dim]
        return first / np.linalg.norm(first, axis=1, keepdims=True).clip(min=1e-12)
