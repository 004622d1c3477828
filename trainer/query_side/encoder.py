"""A model whose query vectors pass a query adapter."""

from pathlib import Path

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.stores.base import Collection
from trainer.config.sections import ModelConfig
from trainer.inference.searching import mismatch
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapter import QueryAdapter


class AdaptedEncoder(TextEncoder):
    """Encodes passages with a model, and queries with the model and an adapter of it. Raises BadInput for an adapter of
    another model, or of queries that were read otherwise."""

    def __init__(self, config: ModelConfig, folder: Path):
        super().__init__(config)
        self.adapter = QueryAdapter.load(folder)
        made_for, flag = self.adapter.facts, f"--query-adapter {folder}"
        if made_for["model_sha256"] != self.fingerprint:
            raise BadInput(f"{flag}: maps queries of {made_for['model']}, whose files are not those of {config.path}")
        if made_for["query_prompt"] != (own := self.spec.rules.query_prompt):
            prompt = made_for["query_prompt"]
            raise BadInput(
                f"{flag}: maps queries that were read with {prompt!r} before them, not {own!r}; --query-prompt"
            )

    def queries(self, texts: list[str]) -> np.ndarray:
        return self.adapter(super().queries(texts))

    def check(self, collection: Collection | None) -> None:
        """Raises BadInput for a collection whose vectors are not those that the adapter was made for. None: the texts
        are embedded here."""
        if collection is None:
            self.dim = self.adapter.dim if self.adapter.dim < self.size else None
            return
        reason = mismatch(self, collection)
        if not reason and self.adapter.dim != self.size:
            reason = f"holds vectors of {self.size} numbers, the query adapter maps {self.adapter.dim}"
        if reason:
            raise BadInput(f"--collection {collection.name}: {reason}; a query adapter needs its own model's vectors")
