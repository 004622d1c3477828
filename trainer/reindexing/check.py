"""The check of a collection that was embedded anew, before anyone is sent to it.

- A sample of its chunks is embedded again, read back and compared.
- Each of them is searched for, and what the store's search finds is compared with an exact search over all vectors,
  which are read once, a page at a time.
"""

import json
from collections.abc import Iterable

import numpy as np

from data_prep.common.errors import Failed
from data_prep.common.workers import batches
from data_prep.stores.base import PAGE, Chunk, Collection
from trainer.inference.text_encoder import TextEncoder

SAMPLE = 64  # chunks
NEIGHBOURS = 10
TIED = 1e-5  # scores that differ by less are one rank


class Sample:
    """SAMPLE chunks drawn from a stream by the seed 0, each as likely as another."""

    def __init__(self):
        self.chunks: list[Chunk] = []
        self.seen, self.rng = 0, np.random.default_rng(0)

    def add(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self.seen += 1
            if len(self.chunks) < SAMPLE:
                self.chunks.append(chunk)
            elif (place := int(self.rng.integers(self.seen))) < SAMPLE:
                self.chunks[place] = chunk


def check_collection(filled: Collection, source: Collection, encoder: TextEncoder, sample: Sample) -> float:
    """Returns the recall of the store's search: the share of the exact NEIGHBOURS that it finds.

    The sample's chunks are embedded again, whenever they were written. Raises Failed if one is read back differently.
    A chunk that was changed in the source since it was drawn is left out.
    """
    ids = [chunk.id for chunk in sample.chunks]
    now, stored = source.stored(ids), filled.stored(ids)
    drawn = [chunk for chunk in sample.chunks if same(chunk, now.get(chunk.id))]
    if not drawn:
        return 1.0
    asked = encoder.passages([chunk.text for chunk in drawn])
    best, own = _exact(filled, asked, {chunk.id for chunk in drawn})
    differing = [
        chunk.id
        for chunk, vector in zip(drawn, asked)
        if not (same(chunk, stored.get(chunk.id)) and _alike(vector, own.get(chunk.id), filled.fidelity))
    ]
    if differing:
        count, mend = f"{len(differing)} of {len(drawn)}", "look at its settings, delete it and run again"
        raise Failed(
            f"--target {filled.name}: {count} chunks that were read back differ from what was written, such as "
            f"{differing[0]}; {mend}"
        )
    return _recall(asked, best, filled.query(asked, best.shape[1]))


def _exact(filled: Collection, asked: np.ndarray, wanted: set[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(q, d) vectors -> (q, k) greatest inner products with all vectors, best first; and the wanted chunks' vectors."""
    best, own = np.full((len(asked), 0), -np.inf, np.float32), {}
    for page in batches(filled.chunks(embeddings=True), PAGE):
        scores = np.hstack([best, asked @ np.array([chunk.embedding for chunk in page]).T])
        best = -np.sort(-scores, axis=1)[:, :NEIGHBOURS]
        own |= {chunk.id: chunk.embedding for chunk in page if chunk.id in wanted}
    return best, own


def _alike(embedded: np.ndarray, stored: np.ndarray | None, least: float) -> bool:
    """Returns True if the cosine of both is `least` or more."""
    if stored is None:
        return False
    length = float(np.linalg.norm(embedded) * np.linalg.norm(stored))
    return length == 0 or float(embedded @ stored) / length >= least


def same(one: Chunk, stored: Chunk | None) -> bool:
    """Returns True for a chunk with the same text and metadata; NaN, which Chroma stores, is equal to NaN."""
    if stored is None or one.text != stored.text:
        return False
    return one.metadata == stored.metadata or json.dumps(one.metadata) == json.dumps(stored.metadata)


def _recall(asked: np.ndarray, best: np.ndarray, answers: list[list[Chunk]]) -> float:
    """Returns the share of hits whose score is at least the exact search's last one."""
    found = 0
    for query, scores, hits in zip(asked, best, answers):
        own = {chunk.id: float(query @ chunk.embedding) for chunk in hits}
        found += sum(score >= scores[-1] - TIED for score in own.values())
    return found / best.size
