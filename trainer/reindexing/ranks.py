"""Embedding and writing over ranks: rank 0 reads both collections and deals batches, every rank embeds its own.

- A server is written by every rank, its own batch as soon as it is embedded. Rank 0 may deal ahead as far as the
  network buffers what it sends.
- An embedded store is opened by rank 0 alone, which gets the vectors of a round, one batch per rank, and writes them.
- So a killed run has embedded at most one batch of each rank in vain.
- A batch holds the same texts whatever the number of ranks, and is embedded by one of them: its vectors have the same
  bits on any number of ranks.
"""

from contextlib import ExitStack
from dataclasses import replace

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, Collection, StoreConfig
from data_prep.stores.open import open_store
from trainer.distributed.collectives import World
from trainer.inference.store_record import PRECISION
from trainer.inference.team import Led
from trainer.inference.text_encoder import TextEncoder


class Ranks(Led, ExitStack):
    """The ranks of encoder.runtime, or one process. Leaving it closes what a rank opened."""

    _filled: Collection | None = None  # what this rank writes to
    _each_writes = False
    _dealt: list | None = None  # of rank 0: what each rank gets

    def __init__(self, encoder: TextEncoder, config: StoreConfig, target: str | None, into_vector: str | None):
        """target, into_vector: as of reindex()."""
        Led.__init__(self, encoder.runtime.world if encoder.runtime else World())
        ExitStack.__init__(self)
        self.encoder, self.config, self.target, self.into_vector = encoder, config, target, into_vector

    def load(self) -> None:
        """Loads the model, which embeds on each rank apart from then on. Rank 0."""
        self._on_all("_load")

    def _load(self) -> None:
        assert self.encoder.loaded
        self.encoder.apart = True
        self.callback(setattr, self.encoder, "apart", False)

    def keep_precision(self, filled: Collection) -> None:
        """Lets --precision auto mean that of the vectors that are there. Raises BadInput for another one. Rank 0."""
        there, now = filled.about.get(PRECISION, "fp32"), self.encoder.computes_in
        if there == now:
            return
        if self.encoder.precision != "auto":
            mend = f"use --precision {there}, choose another name, or delete it first"
            raise BadInput(f"--precision {now}: {filled.name} holds vectors that were embedded in {there}; {mend}")
        say(f"note: {filled.name} holds vectors that were embedded in {there}, so this run embeds in {there} too")
        self._on_all("_load_in", there)

    def _load_in(self, precision: str) -> None:
        self.encoder.load_in(precision)

    def fill(self, filled: Collection) -> None:
        """Names the collection that `write` writes to, and opens it where it is a server's. Rank 0."""
        self._filled = filled
        self._on_all("_open", filled.store.served)

    def _open(self, each_writes: bool) -> None:
        self._each_writes = each_writes
        if not each_writes or self.world.rank == 0:
            return
        store = self.enter_context(open_store(self.config))
        source = store.open(self.config.collection)
        if self.into_vector is None:
            self._filled = store.open(self.target, **source.layout)
        else:
            self._filled = store.add_vector(source, self.into_vector, self.encoder.size, {})

    def write(self, batches: list[list[Chunk]]) -> None:
        """Embeds and writes at most one batch per rank. `settle` waits until all are written. Rank 0."""
        dealt = batches if self._each_writes else [[chunk.text for chunk in batch] for batch in batches]
        self._dealt = [*dealt, *([] for _ in range(self.world.size - len(batches)))]
        vectors = self._on_all("_embed")
        for batch, of_rank in zip(batches, [] if vectors is None else vectors):
            self._filled.upsert(embedded(batch, of_rank))

    def _embed(self) -> list | None:
        own = self.world.deal(self._dealt)
        if not self._each_writes:
            return self.world.collect(self.encoder.passages(own) if own else None)
        if own:
            self._filled.upsert(embedded(own, self.encoder.passages([chunk.text for chunk in own])))
        return None

    def settle(self) -> int:
        """Waits until every rank has written its batches; returns how many texts were truncated so far. Rank 0."""
        return self._on_all("_settle")

    def _settle(self) -> int:
        return int(self.world.gather_ints([self.encoder.cut]).sum())


def embedded(chunks: list[Chunk], vectors) -> list[Chunk]:
    """vectors: (chunks, d) float32"""
    return [replace(chunk, embedding=vector) for chunk, vector in zip(chunks, vectors)]
