"""Opens a store of any kind, and writes a small one."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.stores.base import PAGE, Chunk, Collection, Store, StoreConfig
from data_prep.stores.folders import folder_to_open


def open_collection(config: StoreConfig) -> Collection:
    """Opens a collection for reading.

    A folder that opening would change (an older version wrote it) is read from a temporary copy, unless
    config.upgrade_store. BadInput, listing what exists instead: contradictory config, no store there, a refused key, no
    such collection, text field or named vector. Failed: the store is locked by another process or fails.
    """
    store = open_store(config, reading=True)
    try:
        return store.open(config.collection)
    except BaseException:
        store.close()
        raise


def open_store(config: StoreConfig, create: bool = False, reading: bool = False) -> Store:
    """Opens a store. create: makes a new or empty folder a store. Raises as open_collection.

    reading: nothing will be written, so a copy may be opened. Otherwise a folder that opening would change is BadInput.
    """
    check(config.problems())
    kind = config.store()
    change = None if config.path is None else kind.examine(config.path, create)
    with ExitStack() as stack:
        folder = stack.enter_context(folder_to_open(config, change, reading, create))
        store = kind(config, folder)
        store.temporary = stack.pop_all()
    return store


def write_chunks(path: str | Path, collection: str, chunks: Iterable[Chunk], digest: str) -> bool:
    """Writes the chunks to an embedded Chroma collection without vectors. Returns False if it exists already.

    An interrupted write is completed. BadInput: the collection has another digest or was made by something else.
    digest: a hash of the chunks, kept in the collection's metadata.
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
    """BadInput if no collection of this name can be written there. For checks before long work."""
    check(config.problems())
    problems = []
    if config.path is not None and config.path.exists() and not config.path.is_dir():
        problems.append(f"--path {config.path}: is a file; name a folder")
    if problem := config.store().name_problem(config.collection):
        problems.append(f"{flag} {config.collection!r}: {problem}")
    check(problems)
