"""Chunks of text in a vector store: embedded Chroma, read page by page.

Chroma embeds documents itself unless it is told not to, and downloads a model for that. So collections are always
opened with `embedding_function=None`, and those that this package writes carry a placeholder vector [0.0] per chunk, as
Chroma stores no document without one; the collection's metadata says so (`vectors`). Query such a collection by id or
metadata, or write real vectors into another collection first.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.problems import BadInput, Failed, nearest

PLACEHOLDER = "none: every vector is the placeholder [0.0]; only the texts and metadata are real"


@dataclass(slots=True)
class Chunk:
    """One stored text. metadata: texts, numbers and booleans, as a store holds them."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def _client(path: Path, create: bool = False):
    """An embedded Chroma client without telemetry. Opening a path that is no store would create one: refused."""
    file = path / "chroma.sqlite3"
    if not create:
        if not path.is_dir():
            raise BadInput(f"--path {path}: {'is a file' if path.exists() else 'no such folder'}; name a Chroma folder")
        if not file.is_file():
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise BadInput(f"--path {path}: is no Chroma folder (no chroma.sqlite3; it holds {inside})")
    if file.is_file() and not _is_chroma(file):
        raise BadInput(f"--path {path}: chroma.sqlite3 is damaged or no Chroma database")
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError:
        raise Failed("stores need Chroma: pip install 'embedfleet[stores]'") from None
    with _chroma_failures(path):
        return chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False))


@contextmanager
def _chroma_failures(path: Path) -> Iterator[None]:
    """A full disk, a read-only folder or a damaged database, which Chroma raises under many names, as one line."""
    from chromadb.errors import ChromaError

    try:
        yield
    except BadInput:
        raise
    except (ChromaError, ValueError, RuntimeError) as error:
        raise Failed(f"Chroma failed in {path}: {str(error).splitlines()[0]}") from None


def _is_chroma(file: Path) -> bool:
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("select 1 from sqlite_master where name = 'collections'").fetchone())
        finally:
            connection.close()
    except sqlite3.Error:
        return False


def _collection(client, path: Path, name: str):
    from chromadb.errors import ChromaError

    try:
        return client.get_collection(name, embedding_function=None)
    except (ChromaError, ValueError):
        there = sorted(collection.name for collection in client.list_collections())
        counted = [f"{one} ({client.get_collection(one, embedding_function=None).count():,} chunks)" for one in there]
        listed = ", ".join(counted) or "no collection"
        raise BadInput(f"--collection {name}: not in {path}, which has {listed}.{nearest(name, there)}") from None


def iter_chunks(
    path: str | Path, collection: str, where: dict[str, Any] | None = None, page: int = 1000
) -> Iterator[Chunk]:
    """Every chunk of an embedded Chroma collection, in the order of insertion, holding one page at a time.

    where: Chroma's own metadata filter. BadInput: no store there, no such collection (those there are listed), a filter
    that Chroma does not understand, chunks without text (their ids and metadata fields are listed).
    """
    store = _collection(_client(Path(path)), Path(path), collection)
    offset = 0
    while True:
        with _chroma_failures(Path(path)):
            got = _page(store, where, page, offset)
        if bare := [i for i, text in enumerate(got["documents"]) if not (text or "").strip()]:
            ids = ", ".join(got["ids"][i] for i in bare[:5])
            fields = ", ".join(sorted({key for i in bare for key in got["metadatas"][i] or {}})) or "none"
            raise BadInput(
                f"--collection {collection}: at least {len(bare)} chunks have no text, such as {ids} "
                f"(metadata fields there: {fields}); store the text as the document, or leave them out with --where"
            )
        for chunk_id, text, metadata in zip(got["ids"], got["documents"], got["metadatas"]):
            # Chroma returns the fields of a chunk in no fixed order
            yield Chunk(chunk_id, text, dict(sorted((metadata or {}).items())))
        if len(got["ids"]) < page:
            return
        offset += page


def _page(store, where: dict[str, Any] | None, page: int, offset: int) -> dict[str, Any]:
    from chromadb.errors import ChromaError

    try:
        return store.get(where=where, limit=page, offset=offset, include=["documents", "metadatas"])
    except (ChromaError, ValueError, TypeError) as error:
        if where is None:
            raise
        raise BadInput(
            f"--where {json.dumps(where)}: Chroma does not accept it: {str(error).splitlines()[0]}"
        ) from None


def count_chunks(path: str | Path, collection: str) -> int:
    """The number of chunks in a collection; BadInput as iter_chunks."""
    return _collection(_client(Path(path)), Path(path), collection).count()


def write_chunks(path: str | Path, collection: str, chunks: Iterable[Chunk], digest: str) -> bool:
    """Makes an embedded Chroma collection of these chunks; False when it is there already, with the same digest.

    digest: a hash of the chunks, kept in the collection's metadata. An interrupted write is completed; a collection
    with another digest, or one that this function did not make, is left alone: BadInput.
    """
    path, chunks = Path(path), list(chunks)
    check_target(path, collection)
    client = _client(path, create=True)
    if collection in {one.name for one in client.list_collections()}:
        store = client.get_collection(collection, embedding_function=None)
        if (store.metadata or {}).get("content_sha256") != digest:
            raise BadInput(
                f"--collection {collection}: {path} has one with other content ({store.count():,} chunks); "
                "choose another name or another --path"
            )
        if store.count() == len(chunks):
            return False
    else:
        about = {"vectors": PLACEHOLDER, "content_sha256": digest}
        store = client.create_collection(collection, embedding_function=None, metadata=about)
    size = min(client.get_max_batch_size(), 1000)
    for start in range(0, len(chunks), size):
        part = chunks[start : start + size]
        with _chroma_failures(path):
            store.upsert(
                ids=[chunk.id for chunk in part],
                documents=[chunk.text for chunk in part],
                metadatas=[chunk.metadata or None for chunk in part],
                embeddings=[[0.0]] * len(part),
            )
    return True


def check_target(path: Path, collection: str) -> None:
    """BadInput when no collection of this name can be written to this path; for checking before long work."""
    import re

    if path.exists() and not path.is_dir():
        raise BadInput(f"--path {path}: is a file; name a folder")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]", collection):
        raise BadInput(
            f"--collection {collection!r}: a Chroma name has 3 to 512 letters, digits, '.', '_' or '-', "
            "and starts and ends with a letter or digit"
        )
