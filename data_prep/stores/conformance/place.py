"""The store that is checked, collections in it that go away again, and the chunks that are written."""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.stores.base import Chunk, Collection, Store, StoreConfig
from data_prep.stores.open import open_store

SIZE = 16
COUNT = 60


class Broken(AssertionError):
    """A promise that the store does not keep."""


def expect(kept: bool, problem: str) -> None:
    if not kept:
        raise Broken(problem)


def expect_refusal(of: str, call: Callable[[], Any], *parts: str) -> None:
    """Expects BadInput whose text holds the parts."""
    try:
        call()
    except BadInput as error:
        lacking = [part for part in parts if part not in str(error)]
        expect(not lacking, f"{of}: the message does not name {', '.join(lacking)}: {error}")
        return
    raise Broken(f"{of}: is accepted; expected BadInput")


@dataclass
class Place:
    config: StoreConfig
    prefix: str = field(default_factory=lambda: f"conformance_{uuid.uuid4().hex[:8]}_")
    made: int = 0

    def name(self) -> str:
        """Returns the name of a new collection."""
        self.made += 1
        return f"{self.prefix}{self.made}"

    def store(self) -> Store:
        return open_store(self.config, create=True)

    def filled(self, chunks: Sequence[Chunk] | None = None, cosine: bool = True) -> Collection:
        """Returns a collection that a store wrote before it was closed, opened by another one."""
        name = self.name()
        with self.store() as store:
            written = store.create(name, SIZE, {"made": "here", "number": 3}, cosine)
            written.upsert(some_chunks() if chunks is None else chunks)
            written.finish()
        return self.open(name)

    def open(self, name: str) -> Collection:
        store = self.store()
        try:
            return store.open(name)
        except BaseException:
            store.close()
            raise

    def clean(self) -> None:
        """Deletes the collections that were made."""
        with self.store() as store:
            for name in store.names():
                if name.startswith(self.prefix):
                    store.delete(name)


def some_chunks(count: int = COUNT) -> list[Chunk]:
    """Chunks in a shuffled order of ids, with directions of their own."""
    made = []
    for i in random.Random(0).sample(range(count), count):
        metadata = {"kind": "ab"[i % 3 == 0], "number": i, "share": i / 4 + 0.125, "good": i % 2 == 0}
        made.append(Chunk(str(i), f"Chunk {i} says something of its own.", metadata, vector(i)))
    return made


def vector(seed: int) -> np.ndarray:
    """Returns (SIZE,) float32 of length 1."""
    numbers = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
    return numbers / np.linalg.norm(numbers)


def plain(chunks: Sequence[Chunk]) -> dict[str, Chunk]:
    """Returns the chunks by id as they are read: with sorted metadata, without embeddings."""
    return {one.id: Chunk(one.id, one.text, dict(sorted(one.metadata.items()))) for one in chunks}


def expect_same(read: Sequence[Chunk], written: Sequence[Chunk]) -> None:
    """Expects that each chunk was read once and as it was written."""
    got, wanted = plain(read), plain(written)
    expect(len(got) == len(read), f"{len(read) - len(got)} chunks were read twice")
    missing, beyond = sorted({*wanted} - {*got}), sorted({*got} - {*wanted})
    expect(not missing, f"{len(missing)} of {len(wanted)} chunks were not read, such as {missing[:3]}")
    expect(not beyond, f"{len(beyond)} chunks were read that are not there, such as {beyond[:3]}")
    for one in read:
        same = one == wanted[one.id] and _types(one.metadata) == _types(wanted[one.id].metadata)
        expect(same, f"a chunk is read as {one}, was written as {wanted[one.id]}")


def _types(metadata: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in metadata.items()}


def best(query: np.ndarray, chunks: Sequence[Chunk], k: int) -> list[str]:
    """Returns the ids of the k chunks of the largest inner product with (d,) the query, by exact search."""
    scores = np.array([one.embedding for one in chunks]) @ query
    return [chunks[i].id for i in np.argsort(-scores, kind="stable")[:k]]
