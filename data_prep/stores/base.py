"""Chunks of text in a vector store: Chroma and Qdrant, embedded or on a server, behind the same methods.

    with open_collection(StoreConfig("chroma", "docs", path=Path("chroma"))) as collection:
        for chunk in collection.chunks(): ...

The stores' own sides are data_prep.stores.chroma and data_prep.stores.qdrant, loaded when they are needed.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

KINDS = ("chroma", "qdrant")
CHROMA_PORT = 8000
PAGE = 1000  # chunks held at a time
QUERIES = 100  # vectors asked at a time


@dataclass(slots=True)
class Chunk:
    """One stored text. metadata: what the store holds beside it. embedding: (d,) float32 where it was asked for; it
    takes no part in comparisons."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    embedding: "np.ndarray | None" = field(default=None, compare=False)


@dataclass(frozen=True)
class StoreConfig:
    """Where a collection is. Keys are no part of it: CHROMA_TOKEN and QDRANT_API_KEY come from the environment or .env.

    path: folder of embedded Chroma or of Qdrant's local mode. host, port, ssl: a Chroma server. url: a Qdrant server.
    text_field: the payload field that holds a Qdrant point's text. vector_name: which of its named vectors.
    """

    kind: str
    collection: str
    path: Path | None = None
    host: str | None = None
    port: int | None = None
    ssl: bool = False
    url: str | None = None
    text_field: str | None = None
    vector_name: str | None = None

    @property
    def place(self) -> str:
        """The flags that name the store, for messages."""
        if self.path is not None:
            return f"--path {self.path}"
        if self.url is not None:
            return f"--url {self.url}"
        return f"--host {self.host} --port {self.port or CHROMA_PORT}" + (" --ssl" if self.ssl else "")

    def problems(self) -> list[str]:
        """What contradicts itself, with the flags that say it."""
        if self.kind not in KINDS:
            return [f"--store {self.kind}: must be one of {', '.join(KINDS)}"]
        server, other = ("host", "url") if self.kind == "chroma" else ("url", "host")
        found = []
        foreign = [other] + (["text_field", "vector_name"] if self.kind == "chroma" else ["port", "ssl"])
        for name in foreign:
            if getattr(self, name):
                flag = name.replace("_", "-")
                found.append(f"--{flag}: belongs to --store {'qdrant' if self.kind == 'chroma' else 'chroma'}")
        places = [self.path is not None, getattr(self, server) is not None]
        if sum(places) != 1:
            found.append(
                f"--store {self.kind}: needs --path DIR (a folder) or --{server} (a server)"
                + (", not both" if sum(places) == 2 else "")
            )
        if self.kind == "chroma" and self.host is None:
            found += [f"--{name}: needs --host" for name in ("port", "ssl") if getattr(self, name)]
        if self.port is not None and not 1 <= self.port <= 65535:
            found.append(f"--port {self.port}: must be 1 to 65535")
        if self.host is not None and ("/" in self.host or "@" in self.host):
            found.append("--host: must be a host name or address alone; --port and --ssl say the rest")
        if self.url is not None:
            found += _url_problems(self.url)
        return found


def _url_problems(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for what is no port
    except ValueError as error:
        return [f"--url: {error}"]
    if parts.username or parts.password:
        return ["--url: holds a user or password; put the key into QDRANT_API_KEY (environment or .env)"]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"--url {url}: must look like http://localhost:6333"]
    return []


class Collection(AbstractContextManager, Protocol):
    """One collection of a store that is open. Closing it closes the store.

    about: what the collection itself says, flat. size: d of its vectors, None where it holds none that can be read.
    layout: what else `Store.create` and `Store.open` need to make or read a collection of the same form. not_copied:
    what such a collection lacks nevertheless.
    """

    name: str
    about: dict[str, Any]
    size: int | None
    layout: dict[str, str]
    not_copied: list[str]

    def count(self, where: dict[str, Any] | None = None) -> int:
        """Chunks that fit `where`, all without it. BadInput: a filter that the store does not understand."""

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        """Every chunk that fits `where`, once, holding one page at a time, in an order that a second read repeats.

        Chroma: order of insertion. Qdrant: order of ids. embeddings: the store's own vectors are read along.
        BadInput: a filter that the store does not understand, chunks without text (ids and fields are listed).
        Failed: the store fails, or chunks before the current page were deleted while it was read.
        """

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Those of these chunks that are here, by id, without embeddings."""

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        """Writes chunks with their embeddings, replacing those of the same id; on disk when it returns."""

    def describe(self, about: dict[str, Any]) -> None:
        """Sets these entries of `about`; the others stay."""

    def query(self, vectors: "np.ndarray", k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        """(q, d) vectors -> for each its k nearest chunks by the store's own search, best first, with embeddings.

        BadInput: d is not that of the collection, a filter that the store does not understand.
        """

    def close(self) -> None: ...


class Store(AbstractContextManager, Protocol):
    """A store that is open."""

    def names(self) -> list[str]: ...

    def aliases(self) -> dict[str, str] | None:
        """alias -> collection; None where the store has no aliases."""

    def open(self, name: str, **layout: str) -> Collection: ...

    def create(
        self, name: str, size: int | None, about: dict[str, Any], cosine: bool = True, **layout: str
    ) -> Collection:
        """A new, empty collection. BadInput where the name is taken or cannot be one.

        size: d of its vectors; None (Chroma only): texts without vectors. about: flat, texts and numbers. cosine:
        vectors are compared by cosine, otherwise by inner product. layout: Collection.layout of one like it.
        """

    def close(self) -> None: ...


def with_text(name: str, chunks: list[Chunk], mend: str) -> list[Chunk]:
    """The chunks of a page. BadInput where some have no text."""
    if bare := [chunk for chunk in chunks if not chunk.text.strip()]:
        fields = ", ".join(sorted({key for chunk in bare for key in chunk.metadata})) or "none"
        raise BadInput(
            f"--collection {name}: at least {len(bare)} chunks have no text, such as "
            f"{', '.join(chunk.id for chunk in bare[:5])} (metadata fields there: {fields}); {mend}"
        )
    return chunks


def free_page() -> None:
    """To be called before each page of a server: httpx leaves every answer, megabytes with embeddings, in a reference
    cycle, and Python's own collector would let dozens of them pile up."""
    gc.collect()


def wrong_size(name: str, size: int | None, asked: int) -> BadInput:
    held = "no vectors that can be searched" if size is None else f"vectors of {size} numbers"
    return BadInput(f"--collection {name}: holds {held}, the query has {asked}: it is another model's")
