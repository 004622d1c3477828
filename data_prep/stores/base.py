"""Chunks of text in a vector store, embedded or on a server, behind the same methods whatever the store.

    with open_collection(StoreConfig("chroma", "docs", path=Path("chroma"))) as collection:
        for chunk in collection.chunks(): ...

- A store is a plug-in: a subclass of Store and one of Collection. docs/how_to/store_plugins.md shows a whole one.
- registry.py finds the classes, open.py opens them. Chroma, Qdrant and pgvector are the ones that come along.
- `python -m data_prep.stores.conformance` checks a plug-in against what is promised here.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.paths import nearest_beside
from data_prep.common.secrets import without
from data_prep.stores import registry

if TYPE_CHECKING:
    import numpy as np

CHROMA_PORT = 8000
HTTPS_PORT = 443
PAGE = 1000  # chunks held at a time
QUERIES = 100  # vectors asked at a time
OWN = "embedfleet_"  # begins the names in `about` that reindex writes: no collection like another takes them over
ADDRESSES = {"path": "--path DIR (a folder)", "host": "--host (a server)", "url": "--url (a server)"}
# fields of StoreConfig that belong to some kinds of store only: Store.takes
START = "start it, or name one that this machine can reach"  # a server that does not answer
FLAGS = (*ADDRESSES, "port", "ssl", "tenant", "database", "text_field", "vector_name", "key_field", "upgrade_store")


class Shifted(Failed):
    """Chunks before the current page were deleted, so that later ones would be skipped. Reading again mends it."""


@dataclass(slots=True)
class Chunk:
    """One stored text."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    embedding: "np.ndarray | None" = field(default=None, compare=False)  # (d,) float32 if it was read
    rest: Any = field(default=None, compare=False)  # Collection.rest of it, for `upsert`


@dataclass(frozen=True)
class StoreConfig:
    """Address of a collection. Secrets come from the environment or .env: CHROMA_TOKEN, QDRANT_API_KEY, PGPASSWORD."""

    kind: str  # a name that registry.load knows
    collection: str
    path: Path | None = None  # folder of an embedded store
    host: str | None = None  # of a Chroma server, as port and ssl
    port: int | None = None
    ssl: bool = False
    url: str | None = None  # of another server
    text_field: str | None = None  # payload field or column with the text, or a path such as meta.body
    vector_name: str | None = None  # of a Qdrant collection's named vectors; column of a table's vectors
    tenant: str | None = None  # of Chroma, as database; None: Chroma's default
    database: str | None = None
    upgrade_store: bool = False  # opening may change a folder that an older version of the library wrote
    key_field: str | None = None  # column with the ids; None: the primary key

    @property
    def place(self) -> str:
        """Returns the flags that name the store, for messages."""
        if self.path is not None:
            return f"--path {self.path}"
        if self.url is not None:
            return f"--url {self.url}"
        return f"--host {self.host} --port {self.chroma_port}" + (" --ssl" if self.ssl else "")

    @property
    def chroma_port(self) -> int:
        """Returns the port of a Chroma server: with TLS, which Chroma itself does not speak, that of the proxy."""
        return self.port or (HTTPS_PORT if self.ssl else CHROMA_PORT)

    def store(self) -> "type[Store]":
        """Returns the class of its kind. Raises BadInput for a kind that is unknown or no Store."""
        found = registry.load(self.kind)
        if not (isinstance(found, type) and issubclass(found, Store)):
            raise BadInput(f"--store {self.kind}: {found!r} is no subclass of data_prep.stores.base.Store")
        return found

    def problems(self) -> list[str]:
        """Returns contradictions, with their flags."""
        try:
            return self.store().problems(self)
        except BadInput as error:
            return error.problems


class Store(AbstractContextManager):
    """An open store. Closing it closes its collections.

    A subclass opens itself in `__init__(config, folder)` (folder: the one to open for config.path), with failures as
    BadInput (the user's) or Failed, and sets the attributes below.
    """

    takes: ClassVar[frozenset[str]]  # fields of FLAGS that its StoreConfig may set; of ADDRESSES exactly one is set
    why_not: ClassVar[str] = "adds no vector to chunks that are there"  # reason of a store without add_vector
    kind: str  # its name in messages
    client: Any  # with close(); otherwise override Store.close
    location: str  # "in FOLDER" or "at ADDRESS", for messages
    secret: str | None = None  # token or key; removed from messages
    served: bool  # a server, not a folder
    temporary: ExitStack | None = None  # what closing the store removes: the copy that was opened

    @classmethod
    def problems(cls, config: StoreConfig) -> list[str]:
        """Returns what contradicts itself in a config of this kind, with the flags. Nothing is opened."""
        problems = [
            f"--{name.replace('_', '-')}: belongs to --store {_owners(name) or 'another one'}"
            for name in FLAGS
            if getattr(config, name) and name not in cls.takes
        ]
        addresses = [name for name in ADDRESSES if name in cls.takes]
        given = [name for name in addresses if getattr(config, name) is not None]
        if addresses and len(given) != 1:
            both = ", not both" if given else ""
            problems.append(f"--store {config.kind}: needs {' or '.join(map(ADDRESSES.get, addresses))}{both}")
        if config.upgrade_store and "upgrade_store" in cls.takes and config.path is None:
            problems.append("--upgrade-store: needs --path")
        return problems

    @classmethod
    def name_problem(cls, name: str) -> str | None:
        """Returns why no collection can have this name, or None."""
        return None

    @classmethod
    def examine(cls, folder: Path, create: bool) -> str | None:
        """Returns what opening a folder would change in it, or None. BadInput: this store cannot read it.

        create: it may be missing or empty. The change is a clause that follows the path, such as "was written by …".
        """
        if not create and not folder.is_dir():
            raise BadInput(f"--path {folder}: {'is a file' if folder.exists() else 'no such folder'}")
        return None

    def errors(self) -> tuple[type[Exception], ...]:
        """Returns the exceptions of the store's library, besides ValueError and RuntimeError."""

    @contextmanager
    def failures(self) -> Iterator[None]:
        """A block whose library errors (lost server, full disk, damaged database) become Failed, in one line."""
        try:
            yield
        except BadInput:
            raise
        except (*self.errors(), ValueError, RuntimeError) as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> Failed:
        return Failed(f"{self.kind} failed {self.location}: {self.reason(error)}")

    def reason(self, error: Exception) -> str:
        """Returns the first line of an error, without the secret."""
        return without(next(iter(self.message(error).splitlines()), "") or type(error).__name__, self.secret)

    def message(self, error: Exception) -> str:
        return str(error)

    def names(self) -> list[str]:
        """Returns the names of the collections, sorted."""

    def aliases(self) -> dict[str, str] | None:
        """Returns alias -> collection; None if the store has no aliases."""
        return None

    def swap_alias(self, alias: str, name: str) -> None:
        """Points an alias, new or not, to a collection, in one step for those who read meanwhile."""

    def open(self, name: str, **layout: str) -> "Collection":
        """Opens a collection. layout: Collection.layout. BadInput lists the collections if this one is missing."""

    def create(
        self,
        name: str,
        size: int | None,
        about: dict[str, Any],
        cosine: bool = True,
        like: "Collection | None" = None,
    ) -> "Collection":
        """Returns a new, empty collection. BadInput if the name is taken or invalid.

        size: d of its vectors; None (Chroma only): texts without vectors.
        about: flat metadata, texts and numbers.
        cosine: vectors are compared by cosine, otherwise by inner product.
        like: one of this store, whose form the new one takes (names of fields, settings); default: the store's own.
        """

    def add_vector(
        self, source: "Collection", name: str, size: int, about: dict[str, Any], cosine: bool = True
    ) -> "Collection":
        """Returns a collection whose chunks get a second vector, as one that holds those that have it (`whole`).

        Its `about` is of the vector. It is set to `about` if the vector is new. BadInput where that cannot be done.
        """
        raise BadInput(f"--into-vector {name}: {self.kind} {self.why_not}; make a new collection with --target NEW")

    def delete(self, name: str) -> None:
        """Deletes a collection, all that it holds, and its aliases."""

    def check_new(self, name: str, problem: str | None) -> None:
        """BadInput if a new collection cannot have this name. problem: what the store forbids in it."""
        taken = name in self.names() or name in (self.aliases() or {})
        if problem := problem or ("is there already" if taken else None):
            raise BadInput(f"--collection {name}: {problem}")

    def no_collection(self, name: str, counts: dict[str, int]) -> BadInput:
        """Returns the error that lists the collections, with their numbers of chunks, and the aliases."""
        aliases = self.aliases() or {}
        listed = [f"{one} ({count:,} chunks)" for one, count in counts.items()]
        listed += [f"{alias} (an alias of {of})" for alias, of in sorted(aliases.items())]
        there, hint = ", ".join(listed) or "no collection", nearest(name, [*counts, *aliases])
        there += self.elsewhere(empty=not listed)
        return BadInput(f"--collection {name}: not {self.location}, which has {there}.{hint}")

    def elsewhere(self, empty: bool) -> str:
        """Returns where else the store may hold collections, as the end of a sentence. empty: none is here."""
        return ""

    def close(self) -> None:
        self.client.close()
        if self.temporary:
            self.temporary.close()

    def __exit__(self, *_) -> None:
        self.close()


class Collection(AbstractContextManager):
    """An open collection. Closing it closes the store."""

    store: Store
    name: str
    about: dict[str, Any]  # the collection's own metadata, flat
    size: int | None  # d of its vectors; None if it has none that can be read
    layout: dict[str, str]  # what Store.open needs besides its name, to open a collection of the same form
    normalises: bool = False  # the store itself makes the length of every vector 1
    whole: bool = True  # False: only a vector that was added to the chunks of another one (Store.add_vector)

    @property
    def fidelity(self) -> float:
        """Returns the least cosine between a vector that was written and the one that is read back. (16 bits: 0.999)"""
        return 0.999

    def count(self, where: dict[str, Any] | None = None) -> int:
        """Returns the number of chunks that match `where`. BadInput: a filter that the store does not understand."""

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        """Yields every chunk that matches `where` once, holding one page at a time, in a repeatable order.

        Chroma: order of insertion. Others: order of ids. embeddings: read the store's own vectors too.
        BadInput: a filter that the store does not understand, chunks without text (ids and fields are listed).
        Failed: the store fails. Shifted: chunks before the current page were deleted meanwhile.
        """

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """Returns the chunks with these ids that exist, by id, without embeddings."""

    def settings(self) -> dict[str, Any]:
        """Returns name -> value of what decides how it stores and searches, for `lost`."""
        return {}

    def lost(self, made: "Collection") -> list[str]:
        """Returns what another collection, created like this one, lacks of it: a line each."""
        return self.differences(self.settings(), made.settings())

    def differences(self, own: dict[str, Any], its: dict[str, Any]) -> list[str]:
        names = [name for name in sorted(own) if own[name] != its.get(name)]
        there = {name: repr(its[name]) if name in its else "not set" for name in names}
        return [f"{name}: {own[name]!r}, there {there[name]}{self.mend(name)}" for name in names]

    def mend(self, setting: str) -> str:
        """Returns why a collection like this one lacks a setting, or the flag that takes it along: " (…)", or ""."""
        return ""

    def rest(self, ids: Sequence[str]) -> dict[str, Any]:
        """Returns what the chunks hold besides text, metadata and vector, by id, for Chunk.rest; texts, numbers, lists
        and dicts. Only a collection of the same form can be given it."""
        return {}

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        """Writes chunks with their embeddings, replacing those of the same id; on disk when it returns."""

    def remove(self, ids: Sequence[str]) -> None:
        """Deletes the chunks with these ids; ids that do not exist are ignored."""

    def prepare(self, like: "Collection") -> None:
        """Sets what is lacking of Store.create(like=…) where that was killed. Repeating it changes nothing."""

    def finish(self, like: "Collection | None" = None) -> None:
        """Makes what the store left until all chunks were written, such as an index. Repeating it changes nothing.

        like: as in Store.create.
        """

    def describe(self, about: dict[str, Any]) -> None:
        """Sets these entries of `about`; the others stay."""

    def query(self, vectors: "np.ndarray", k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        """(q, d) vectors -> for each its k nearest chunks by the store's own search, best first, with embeddings.

        BadInput: d is not the collection's, or a filter that the store does not understand.
        """
        if (size := self.size) != vectors.shape[1]:
            held = "no vectors that can be searched" if size is None else f"vectors of {size} numbers"
            asked = f"the query has {vectors.shape[1]}: it is another model's"
            raise BadInput(f"--collection {self.name}: holds {held}, {asked}")
        hits = []
        for start in range(0, len(vectors), QUERIES):
            with self.filtered(where) as native:
                hits += self.nearest(vectors[start : start + QUERIES], k, native)
        return hits

    def nearest(self, vectors: "np.ndarray", k: int, native: Any) -> list[list[Chunk]]:
        """Answers at most QUERIES vectors of `query`. native: the filter in the store's own form."""

    def native_filter(self, where: dict[str, Any]) -> Any:
        """Returns a filter in the store's own form; default: as it is."""
        return where

    @contextmanager
    def filtered(self, where: dict[str, Any] | None) -> Iterator[Any]:
        """Yields the filter in the store's own form. If there is one, a refused request becomes BadInput about it."""
        native = None if where is None else self.native_filter(where)
        with self.store.failures():
            try:
                yield native
            except BadInput:
                raise
            except (*self.store.errors(), ValueError, TypeError) as error:
                if where is None or not self.refused(error):
                    raise
                kind, reason = self.store.kind, self.store.reason(error)
                raise BadInput(f"--where {json.dumps(where)}: {kind} does not accept it: {reason}") from None

    def refused(self, error: Exception) -> bool:
        """Returns True for an error that says that the request is wrong."""

    def with_text(self, chunks: list[Chunk], mend: str) -> list[Chunk]:
        """Returns the chunks of a page. BadInput if some have no text. mend: what to do then."""
        if bare := [chunk for chunk in chunks if not chunk.text.strip()]:
            fields = ", ".join(sorted({key for chunk in bare for key in chunk.metadata})) or "none"
            raise BadInput(
                f"--collection {self.name}: at least {len(bare)} chunks have no text, such as "
                f"{', '.join(chunk.id for chunk in bare[:5])} (metadata fields there: {fields}); {mend}"
            )
        return chunks

    def free_page(self) -> None:
        """Frees the last page of a server, before the next is read.

        httpx leaves every answer, megabytes with embeddings, in a reference cycle. Python's own collector would let
        dozens of them pile up.
        """
        if self.store.served:
            gc.collect()
            _set_libraries_aside()

    def close(self) -> None:
        self.store.close()

    def __exit__(self, *_) -> None:
        self.close()


@cache
def _set_libraries_aside() -> None:
    """Leaves all objects of now out of later collections, once: to walk those of the libraries takes half a second."""
    gc.freeze()


def _owners(name: str) -> str:
    """Returns the kinds of this package that take a field of StoreConfig."""
    return " or ".join(kind for kind in registry.OWN if name in registry.load(kind).takes)


def check_folder(path: Path, file: str, kind: str, folder: str) -> None:
    """BadInput if the path is no folder with the store's file. folder: what it should be, for the message."""
    if not path.is_dir():
        state = "is a file" if path.exists() else "no such folder"
        raise BadInput(f"--path {path}: {state}; name a {kind} folder.{nearest_beside(path)}")
    if not (path / file).is_file():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise BadInput(f"--path {path}: is no {folder} (no {file}; it holds {inside})")
