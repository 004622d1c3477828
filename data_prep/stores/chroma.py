"""Chroma, embedded in this process or on a server.

Chroma embeds documents itself unless it is told not to, and downloads a model for that. So collections are always
opened with `embedding_function=None`, and those made without vectors carry a placeholder [0.0] per chunk, as Chroma
stores no document without one; the collection's metadata says so (`vectors`). Query such a collection by id or
metadata, or write real vectors into another collection first.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.secrets import secret, without
from data_prep.stores.base import CHROMA_PORT, PAGE, QUERIES, Chunk, StoreConfig, free_page, with_text, wrong_size

if TYPE_CHECKING:
    import numpy as np

PLACEHOLDER = "none: every vector is the placeholder [0.0]; only the texts and metadata are real"
TOKEN = "CHROMA_TOKEN"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]")
_ANSWER_SECONDS = 20.0


def name_problem(name: str) -> str | None:
    """Why no collection can be called so."""
    if _NAME.fullmatch(name):
        return None
    return "a Chroma name has 3 to 512 letters, digits, '.', '_' or '-', and starts and ends with a letter or digit"


class ChromaStore:
    """A Chroma folder or server. Telemetry is off."""

    def __init__(self, config: StoreConfig, create: bool = False):
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            raise Failed("--store chroma: needs Chroma: pip install 'embedfleet[stores]'") from None
        self.token, self.served = None, config.path is None
        settings = Settings(anonymized_telemetry=False)
        if config.path is not None:
            self.said = f"in {config.path}"
            _check_folder(config.path, create)
            with self.failures():
                self.client = chromadb.PersistentClient(str(config.path), settings=settings)
            return
        self.token = secret(TOKEN)
        self.said = f"at {config.host}:{config.port or CHROMA_PORT}"
        headers = {"Authorization": f"Bearer {self.token}", "X-Chroma-Token": self.token} if self.token else {}
        _check_server(config, headers)
        server = {"host": config.host, "port": config.port or CHROMA_PORT, "ssl": config.ssl, "headers": headers}
        with self.failures():
            self.client = chromadb.HttpClient(**server, settings=settings)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """A full disk, a lost server or a damaged database, which Chroma raises under many names, as one line."""
        import httpx
        from chromadb.errors import ChromaError

        try:
            yield
        except BadInput:
            raise
        except (ChromaError, httpx.HTTPError, ValueError, RuntimeError) as error:
            raise Failed(f"Chroma failed {self.said}: {self.reason(error)}") from None

    def reason(self, error: Exception) -> str:
        return without(next(iter(str(error).splitlines()), "") or type(error).__name__, self.token)

    def names(self) -> list[str]:
        with self.failures():
            return sorted(collection.name for collection in self.client.list_collections())

    def open(self, name: str) -> "ChromaCollection":
        there = self.names()
        if name in there:
            return ChromaCollection(self, name)
        counted = [f"{one} ({ChromaCollection(self, one).count():,} chunks)" for one in there]
        listed = ", ".join(counted) or "no collection"
        raise BadInput(f"--collection {name}: not {self.said}, which has {listed}.{nearest(name, there)}")

    def create(self, name: str, size: int | None, about: dict[str, Any], cosine: bool = True) -> "ChromaCollection":
        """See data_prep.stores.base.Store. Chroma learns d from the first vectors; without any (size None) each is [0.0]."""
        if problem := name_problem(name) or ("is there already" if name in self.names() else None):
            raise BadInput(f"--collection {name}: {problem}")
        if size is None:
            about = {"vectors": PLACEHOLDER, **about}
        # the approximate index looks at more candidates than Chroma's own 100 and 16: see docs/stores.md
        space = {"hnsw": {"space": "cosine" if cosine else "ip", "ef_construction": 200, "ef_search": 200}}
        with self.failures():
            self.client.create_collection(
                name, embedding_function=None, metadata=about or None, configuration=None if size is None else space
            )
        return ChromaCollection(self, name)

    def aliases(self) -> None:
        return None

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> "ChromaStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class ChromaCollection:
    """See data_prep.stores.base.Collection."""

    def __init__(self, store: ChromaStore, name: str):
        self.store, self.name, self.layout, self.not_copied = store, name, {}, []
        with store.failures():
            self.inner = store.client.get_collection(name, embedding_function=None)

    @property
    def about(self) -> dict[str, Any]:
        """The collection's own metadata."""
        return self.inner.metadata or {}

    @property
    def size(self) -> int | None:
        with self.store.failures():
            got = self.inner.get(limit=1, include=["embeddings"])["embeddings"]
        return None if self.about.get("vectors") == PLACEHOLDER or not len(got) else len(got[0])

    def count(self, where: dict[str, Any] | None = None) -> int:
        if where is None:
            with self.store.failures():
                return self.inner.count()
        return sum(len(got["ids"]) for got in self._pages(where, 10 * PAGE, []))  # Chroma counts no filtered chunks

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        if embeddings and self.about.get("vectors") == PLACEHOLDER:
            raise BadInput(f"--collection {self.name}: has no embeddings to read: its vectors are placeholders")
        mend = "store the text as the document, or leave them out with --where"
        for got in self._pages(where, page, ["documents", "metadatas"] + ["embeddings"] * embeddings):
            yield from with_text(self.name, _chunks(got), mend)

    def _pages(self, where: dict[str, Any] | None, page: int, include: list[str]) -> Iterator[dict[str, Any]]:
        """Pages by offset: Chroma has no other way, orders by insertion, and takes longer the higher the offset.

        A chunk that was deleted before the offset would shift the rest unseen. So each page reads the last chunk of the
        one before again, and no other may stand there.
        """
        offset, last = 0, None
        while True:
            overlap = 0 if last is None else 1
            if self.store.served:
                free_page()
            got = self._get(where, page + overlap, offset - overlap, include)
            if overlap and got["ids"][:1] != [last]:
                raise Failed(
                    f"--collection {self.name}: chunks were deleted while it was read, so that others would be missed; "
                    "read it again when nothing deletes from it"
                )
            got = {name: got[name][overlap:] for name in ("ids", *include)}
            if got["ids"]:
                last = got["ids"][-1]
                yield got
            if len(got["ids"]) < page:
                return
            offset += page

    def _get(self, where: dict[str, Any] | None, limit: int, offset: int, include: list[str]) -> dict[str, Any]:
        with self._asked(where):
            return self.inner.get(where=where, limit=limit, offset=offset, include=include)

    @contextmanager
    def _asked(self, where: dict[str, Any] | None) -> Iterator[None]:
        """A block whose refusals are the filter's fault where there is one."""
        from chromadb.errors import InvalidArgumentError

        with self.store.failures():
            try:
                yield
            except (InvalidArgumentError, ValueError, TypeError) as error:
                if where is None:
                    raise
                reason = self.store.reason(error)
                raise BadInput(f"--where {json.dumps(where)}: Chroma does not accept it: {reason}") from None

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        with self.store.failures():
            got = self.inner.get(ids=list(ids), include=["documents", "metadatas"])
        return {chunk.id: chunk for chunk in _chunks(got)}

    def describe(self, about: dict[str, Any]) -> None:
        with self.store.failures():
            self.inner.modify(metadata={**self.about, **about})

    def query(self, vectors: "np.ndarray", k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        if self.size != vectors.shape[1]:
            raise wrong_size(self.name, self.size, vectors.shape[1])
        include, found = ["documents", "metadatas", "embeddings"], []
        for start in range(0, len(vectors), QUERIES):
            asked = vectors[start : start + QUERIES]
            with self._asked(where):
                got = self.inner.query(query_embeddings=asked, n_results=k, where=where, include=include)
            names = ("ids", *include)
            found += [_chunks(dict(zip(names, answer))) for answer in zip(*(got[name] for name in names))]
        return found

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        with self.store.failures():
            size = min(self.store.client.get_max_batch_size(), PAGE)
            for start in range(0, len(chunks), size):
                part = chunks[start : start + size]
                there = self.stored([chunk.id for chunk in part])
                # Chroma adds to the metadata of a chunk that is there; a field goes only where it is set to None
                before = [dict.fromkeys(there[chunk.id].metadata) if chunk.id in there else {} for chunk in part]
                self.inner.upsert(
                    ids=[chunk.id for chunk in part],
                    documents=[chunk.text for chunk in part],
                    metadatas=[{**old, **chunk.metadata} or None for old, chunk in zip(before, part)],
                    embeddings=[[0.0] if chunk.embedding is None else chunk.embedding for chunk in part],
                )

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> "ChromaCollection":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _chunks(got: dict[str, Any]) -> list[Chunk]:
    """The chunks of one of Chroma's answers. It returns the fields of a chunk in no fixed order."""
    import numpy as np

    texts, fields = got["documents"], got["metadatas"]
    vectors = got.get("embeddings")
    vectors = [None] * len(texts) if vectors is None else np.asarray(vectors, dtype=np.float32)
    return [
        Chunk(chunk_id, text or "", dict(sorted((metadata or {}).items())), vector)
        for chunk_id, text, metadata, vector in zip(got["ids"], texts, fields, vectors)
    ]


def _check_folder(path: Path, create: bool) -> None:
    """BadInput for a path that is no store, which Chroma would make one, unless it is to be created."""
    file = path / "chroma.sqlite3"
    if not create:
        if not path.is_dir():
            raise BadInput(f"--path {path}: {'is a file' if path.exists() else 'no such folder'}; name a Chroma folder")
        if not file.is_file():
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise BadInput(f"--path {path}: is no Chroma folder (no chroma.sqlite3; it holds {inside})")
    if file.is_file() and not _is_chroma(file):
        raise BadInput(f"--path {path}: chroma.sqlite3 is damaged or no Chroma database")


def _is_chroma(file: Path) -> bool:
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("select 1 from sqlite_master where name = 'collections'").fetchone())
        finally:
            connection.close()
    except sqlite3.Error:
        return False


def _check_server(config: StoreConfig, headers: dict[str, str]) -> None:
    """BadInput unless a Chroma server answers there and takes the token: the client's own errors do not tell."""
    import httpx

    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"{'https' if config.ssl else 'http'}://{host}:{config.port or CHROMA_PORT}/api/v2/auth/identity"
    try:
        answer = httpx.get(url, headers=headers, timeout=_ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = without(str(error) or type(error).__name__, *headers.values())
        raise BadInput(f"{config.place}: no Chroma server answers there ({reason})") from None
    if answer.status_code in (401, 403):
        state = f"refuses the token in {TOKEN}" if headers else f"wants a token: set {TOKEN} (environment or .env)"
        raise BadInput(f"{config.place}: the server {state} (HTTP {answer.status_code})")
    try:
        known = answer.is_success and "tenant" in answer.json()
    except ValueError:
        known = False
    if not known:
        server = without(answer.headers.get("server", "unknown"), *headers.values())
        raise BadInput(
            f"{config.place}: what answers there is no Chroma server of version 1 "
            f"(HTTP {answer.status_code}, server: {server})"
        )
