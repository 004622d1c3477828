"""Definitions of this subject."""

from collections.abc import Iterable
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.stores.base import PAGE, Chunk, Collection, Store, StoreConfig


def open_collection(config: StoreConfig) -> Collection:
    """The collection, open for reading.

    BadInput, each listing what is there instead: contradictory config, no store at that place, a refused key, no such
    collection, no such text field or named vector. Failed: the store is locked by another process or fails.
    """
    store = open_store(config)
    try:
        return store.open(config.collection)
    except BaseException:
        store.close()
        raise


def open_store(config: StoreConfig, create: bool = False) -> Store:
    """The store itself. create: a folder that is no store yet becomes one. Raises as open_collection."""
    check(config.problems())
    if config.kind == "chroma":
        from data_prep.stores.chroma import ChromaStore

        return ChromaStore(config, create)
    from data_prep.stores.qdrant import QdrantStore

    return QdrantStore(config, create)


def write_chunks(path: str | Path, collection: str, chunks: Iterable[Chunk], digest: str) -> bool:
    """Makes an embedded Chroma collection of these chunks, without vectors; False when it is there already, with the
    same digest.

    digest: a hash of the chunks, kept in the collection's metadata. An interrupted write is completed; a collection
    with another digest, or one that this function did not make, is left alone: BadInput.
    """
    config, chunks = StoreConfig("chroma", collection, path=Path(path)), list(chunks)
    check_target(config)
    with open_store(config, create=True) as store:
        if collection in store.names():
            target = store.open(collection)
            if target.about.get("content_sha256") != digest:
                raise BadInput(
                    f"--collection {collection}: {path} has one with other content ({target.count():,} chunks); "
                    "choose another name or another --path"
                )
            if target.count() == len(chunks):
                return False
        else:
            target = store.create(collection, None, {"content_sha256": digest})
        for start in range(0, len(chunks), PAGE):
            target.upsert(chunks[start : start + PAGE])
    return True


def check_target(config: StoreConfig, flag: str = "--collection") -> None:
    """BadInput when no collection of this name can be written there; for checking before long work."""
    found = config.problems()
    if config.path is not None and config.path.exists() and not config.path.is_dir():
        found.append(f"--path {config.path}: is a file; name a folder")
    if config.kind == "chroma":
        from data_prep.stores.chroma import name_problem
    else:
        from data_prep.stores.qdrant import name_problem
    if problem := name_problem(config.collection):
        found.append(f"{flag} {config.collection!r}: {problem}")
    check(found)
