"""The vectors of a collection, read once from its store into a file that every rank maps into memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.common.workers import batches
from data_prep.records import text_key
from data_prep.stores.base import PAGE, Chunk, Collection
from trainer.inference.searching import LENGTH
from trainer.query_side.collection_loss import Documents

SAMPLED = 16  # chunks by which an adapter knows the documents that it was trained for


@dataclass(frozen=True)
class Stored:
    """The facts that were read of a collection besides its vectors."""

    number_of: dict[str, int]  # id -> number of the chunk
    keys: np.ndarray  # (n,) int64 text_key of each chunk
    dim: int

    def sample(self) -> dict[str, int]:
        """Returns id -> text_key of a few chunks, spread over the collection."""
        step = -(-len(self.keys) // SAMPLED)
        return {chunk: int(self.keys[number]) for chunk, number in islice(self.number_of.items(), 0, None, step)}


def read_vectors(collection: Collection, where: dict[str, Any] | None, file: Path) -> Stored:
    """Writes the vectors into `file`, (n, d) float32, a page of chunks at a time.

    Raises BadInput: no chunks, vectors whose length is not 1 (the store compares them by more than their direction),
    or with numbers that are none.
    """
    number_of, keys, lengths = {}, [], []
    chunks: Iterable[Chunk] = collection.chunks(where, embeddings=True)
    with open(file, "wb") as handle:
        for page in batches(track(chunks, f"reading {collection.name}"), PAGE):
            vectors = np.array([chunk.embedding for chunk in page], dtype=np.float32)
            handle.write(vectors.tobytes())
            lengths.append(np.linalg.norm(vectors, axis=1))
            keys.append(np.array([text_key(chunk.text) for chunk in page], dtype=np.int64))
            number_of.update(zip((chunk.id for chunk in page), range(len(number_of), len(number_of) + len(page))))
    if not number_of:
        raise BadInput(f"--collection {collection.name}: no chunk" + (" fits --where" if where else ""))
    _check_lengths(collection.name, np.concatenate(lengths))
    return Stored(number_of, np.concatenate(keys), vectors.shape[1])


def _check_lengths(name: str, lengths: np.ndarray) -> None:
    if bad := int((~np.isfinite(lengths)).sum()):
        raise BadInput(f"--collection {name}: {bad:,} of {len(lengths):,} vectors hold numbers that are not finite")
    if off := int((np.abs(lengths - 1) > LENGTH).sum()):
        raise BadInput(
            f"--collection {name}: {off:,} of {len(lengths):,} vectors have another length than 1 "
            f"({lengths.min():.3g} to {lengths.max():.3g}), so that they are not compared by direction alone; a query "
            "adapter is trained for vectors of length 1"
        )


def share_of(file: Path, count: int, dim: int, rank: int, size: int) -> Documents:
    """Maps one of `size` equal shares of a file of read_vectors into memory."""
    whole = np.memmap(file, np.float32, "c", shape=(count, dim))
    first, last = count * rank // size, count * (rank + 1) // size
    return Documents(torch.from_numpy(whole[first:last]), first)
