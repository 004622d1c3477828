"""A model whose query vectors pass a query adapter."""

from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.model_server.embeddings import EmbeddingConfig
from data_prep.records import text_key
from data_prep.stores.base import Collection
from trainer.config.sections import ModelConfig
from trainer.inference.searching import Encoder, mismatch
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapter import QueryAdapter
from trainer.query_side.endpoint_encoder import EndpointEncoder


class AdaptedEncoder(TextEncoder):
    """Encodes passages with a model, and queries with the model and an adapter of it. Raises BadInput for an adapter of
    another model, or of queries that were read otherwise."""

    def __init__(self, config: ModelConfig, folder: Path, device: str = "auto"):
        super().__init__(config, device)
        self.adapter, self.adapted = adapter_of(folder, self), folder

    @cached_property
    def learned(self) -> TextEncoder | None:
        """The trained encoder of the queries (LoRA); None: the queries are the model's own, mapped."""
        if not self.adapter.query_encoder:
            return None
        config = self.config.model_copy(update={"path": str(self.adapted / self.adapter.query_encoder)})
        return TextEncoder(config, self.device, precision=self.precision, runtime=self.runtime)

    def queries(self, texts: list[str]) -> np.ndarray:
        return self.adapter(self.learned.queries(texts) if self.learned else super().queries(texts))

    def cut_documents(self) -> None:
        """Makes documents as small as the vectors that the adapter was trained against."""
        self.dim = self.adapter.dim if self.adapter.dim < self.size else None


class AdaptedEndpoint(EndpointEncoder):
    """Encodes queries by an endpoint and an adapter of its model. Raises BadInput as AdaptedEncoder does."""

    def __init__(self, config: EmbeddingConfig, query_prompt: str, passage_prompt: str, folder: Path):
        super().__init__(config, query_prompt, passage_prompt)
        self.adapter = adapter_of(folder, self)

    def queries(self, texts: list[str]) -> np.ndarray:
        return self.adapter(super().queries(texts))


def adapter_of(folder: Path, encoder: Encoder) -> QueryAdapter:
    """Returns the adapter of a folder. Raises BadInput if it maps the queries of another model, or other queries."""
    adapter, flag = QueryAdapter.read(folder), f"--query-adapter {folder}"
    facts = adapter.facts
    if (closed := facts.get("endpoint_model")) != encoder.identity.get("endpoint_model"):
        if closed:
            raise BadInput(f"{flag}: maps queries of the closed model {closed}; give --endpoint-model {closed}")
        raise BadInput(f"{flag}: maps queries of {facts['model']}, no closed model; give --model {facts['model']}")
    if facts.get("model_sha256") != encoder.identity.get("model_sha256"):
        raise BadInput(f"{flag}: maps queries of {facts['model']}, whose files are not those of {encoder.name}")
    if (prompt := facts["query_prompt"]) != (own := encoder.query_prompt):
        raise BadInput(f"{flag}: maps queries that were read with {prompt!r} before them, not {own!r}; --query-prompt")
    return adapter


def check_collection(encoder: Encoder, collection: Collection) -> None:
    """Raises BadInput for a collection whose vectors are not the encoder's, or not those that its adapter maps to."""
    reason, adapter = mismatch(encoder, collection), getattr(encoder, "adapter", None)
    if not reason and adapter and adapter.dim != encoder.size:
        reason = f"holds vectors of {encoder.size} numbers, the query adapter maps {adapter.dim}"
    if not reason and adapter:
        reason = _other_documents(adapter, collection)
    if reason:
        mend = f"a {'query adapter' if adapter else 'closed model'} searches its own collection alone"
        raise BadInput(f"--collection {collection.name}: {reason}; {mend}")


def _other_documents(adapter: QueryAdapter, collection: Collection) -> str:
    """Returns why the collection is not the one that the adapter was trained for, or an empty string: it lacks more
    than half of the chunks that the adapter has noted."""
    sample = adapter.facts["sample"]
    stored = collection.stored([*sample])
    there = sum(text_key(chunk.text) == sample[one] for one, chunk in stored.items())
    if 2 * there >= len(sample):
        return ""
    of = f"of {len(sample)} chunks of {adapter.facts['collection']}, {len(sample) - there} are not here"
    return f"holds other documents than those that the adapter was trained for ({of})"
