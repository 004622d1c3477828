"""Shared by the tests of re-indexing: a small collection, and a model that counts the texts it embeds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import tiny
from tests.servers import QdrantProtocol, answering
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder

COUNT = 40


def chunks() -> list[Chunk]:
    rows = tiny.rows(COUNT, negatives=False)
    vector = np.ones(4, dtype=np.float32)
    return [Chunk(str(i), row["positives"][0], {"n": i, "even": i % 2 == 0}, vector) for i, row in enumerate(rows)]


def emptied(url: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade; create schema public; create extension vector")
    return url


def fill(config: StoreConfig) -> None:
    with open_store(config, create=True) as store:
        store.create("docs", 4, {}).upsert(chunks())


@contextmanager
def served(protocol: QdrantProtocol) -> Iterator[StoreConfig]:
    """Answers Qdrant's protocol; yields the collection there."""
    with answering(protocol) as port:
        config = StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body")
        fill(config)
        yield config


class Counting(TextEncoder):
    """Counts the texts that are embedded; stops as a killed process would after so many."""

    texts, most = 0, 10**9

    def passages(self, texts):
        if self.texts + len(texts) > self.most:
            raise KeyboardInterrupt
        self.texts += len(texts)
        return super().passages(texts)


def encoder(folder, **options) -> Counting:
    return Counting(ModelConfig(path=str(folder)), "cpu", **options)


def read(config: StoreConfig, name: str) -> list[Chunk]:
    with open_collection(replace(config, collection=name)) as collection:
        return list(collection.chunks(embeddings=True))


def flags(config: StoreConfig) -> list[str]:
    named = {"store": config.kind, "path": config.path, "url": config.url, "text-field": config.text_field}
    return [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]
