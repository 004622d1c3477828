"""A trained map of query vectors, in plain numpy: QueryAdapter.load(FOLDER)(vector). Never imports torch.

FOLDER/query_adapter.json: form, and the model whose query vectors it maps.
FOLDER/query_adapter.safetensors: N.weight and N.bias of its dense layers, in order; none for the identity.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_object

ADAPTER, WEIGHTS = "query_adapter.json", "query_adapter.safetensors"
QUERY_ENCODER = "query_encoder"  # of the facts: folder of a model that embeds the queries, in place of a map
FORMAT = 2
TINY = 1e-12  # least length that a vector is divided by


@dataclass(frozen=True)
class Layer:
    """x -> Wx + b, and relu of it if `relu`"""

    weight: np.ndarray  # (out, in) float32
    bias: np.ndarray  # (out,) float32
    relu: bool = False

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(n, in) -> (n, out)"""
        mapped = vectors @ self.weight.T + self.bias
        return np.maximum(mapped, 0) if self.relu else mapped


@dataclass(frozen=True)
class QueryAdapter:
    """Maps the query vectors of one model, so that they find more among the document vectors of the same model."""

    layers: list[Layer]  # none: the identity
    facts: dict[str, Any]  # `dim` and the model that it was made for (Encoder.identity), and how it was made

    @property
    def dim(self) -> int:
        return self.facts["dim"]

    @property
    def query_encoder(self) -> str | None:
        """Returns the folder, inside the adapter's, of the model that embeds the queries; None: the model itself."""
        return self.facts.get(QUERY_ENCODER)

    @property
    def is_identity(self) -> bool:
        return not self.layers and not self.query_encoder

    def __call__(self, vectors: Any) -> np.ndarray:
        """(d,) or (n, d) -> the same shape, float32, of length 1. Raises ValueError for vectors of another size."""
        given = np.asarray(vectors, dtype=np.float32)
        if given.ndim not in (1, 2) or given.shape[-1] != self.dim:
            raise ValueError(f"vectors of shape {given.shape}: the adapter maps vectors of {self.dim} numbers")
        mapped = _unit(given.reshape(-1, self.dim))
        for layer in self.layers:
            mapped = layer(mapped)
        return _unit(mapped).reshape(given.shape)

    def save(self, folder: Path) -> None:
        """Writes both files into a folder that exists."""
        tensors = {}
        for number, layer in enumerate(self.layers):
            tensors |= {f"{number}.weight": layer.weight, f"{number}.bias": layer.bias}
        save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}, folder / WEIGHTS)
        relus = [layer.relu for layer in self.layers]
        write_json(folder / ADAPTER, {"query_adapter": FORMAT, "relu": relus, **self.facts})

    @classmethod
    def load(cls, folder: str | Path) -> "QueryAdapter":
        """Reads a map of query vectors from a folder of trainer.adapt_queries. Raises BadInput."""
        adapter = cls.read(Path(folder))
        if adapter.query_encoder:
            raise BadInput(
                f"{folder}: holds an encoder of queries (--map lora), no map of their vectors: "
                f"SentenceTransformer({str(folder)!r}).encode_query(texts) embeds them"
            )
        return adapter

    @classmethod
    def read(cls, folder: Path) -> "QueryAdapter":
        """Reads a folder of trainer.adapt_queries; of an encoder of queries its facts alone. Raises BadInput."""
        facts = read_object(folder / ADAPTER)
        if facts.get("query_adapter") != FORMAT:
            raise BadInput(f"{folder}: is no query adapter of this version (no {ADAPTER} with query_adapter {FORMAT})")
        try:
            tensors = load_file(folder / WEIGHTS)
            relus, dim = facts["relu"], facts["dim"]
            layers = [Layer(tensors[f"{i}.weight"], tensors[f"{i}.bias"], relu) for i, relu in enumerate(relus)]
        except (OSError, KeyError, SafetensorError) as error:
            raise BadInput(f"{folder}: {WEIGHTS} and {ADAPTER} are no whole adapter: {error}") from None
        sizes = [dim, *(len(layer.bias) for layer in layers)]
        fits = all(layer.weight.shape == (out, into) for layer, into, out in zip(layers, sizes, sizes[1:]))
        if not fits or sizes[-1] != dim:
            raise BadInput(f"{folder}: the layers of {WEIGHTS} do not fit {dim} numbers of a vector")
        return cls(layers, {name: value for name, value in facts.items() if name not in ("query_adapter", "relu")})


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(n, d); a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)
