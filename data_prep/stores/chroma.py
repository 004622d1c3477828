"""Chroma, embedded in this process or on a server.

- By default Chroma downloads a model and embeds documents. So collections are opened with `embedding_function=None`.
- Chroma stores no document without a vector. So a collection without vectors holds the placeholder [0.0] per chunk, and
  its metadata says so (`vectors`). Query it by id or metadata, or write real vectors into another collection first.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from data_prep.common.environment import network_client, proxy_note
from data_prep.common.errors import BadInput, nearest
from data_prep.common.secrets import secret, without
from data_prep.stores.base import OWN, PAGE, Chunk, Collection, Shifted, Store, StoreConfig
from data_prep.stores.folders import CHROMA_FILE, examine_chroma, import_chromadb, rows_of

PLACEHOLDER = "none: every vector is the placeholder [0.0]; only the texts and metadata are real"
TOKEN = "CHROMA_TOKEN"
FUNCTION = "embedding function"  # name of that record among the settings
_OWN_EMBEDDINGS = (
    " (the vectors are another model's now: search with its query_embeddings=, because query_texts= without an "
    "embedding_function embeds with Chroma's own model)"
)
TENANT, DATABASE = "default_tenant", "default_database"  # Chroma's own defaults
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]")
_ANSWER_SECONDS = 20.0
_MEND = "start it (chroma run --path FOLDER), or read a folder of Chroma without a server: --path FOLDER"
_CANDIDATES = 200  # of the approximate index, more than Chroma's own 100 and 16: see docs/how_to/reindexing.md
_OLDER = {  # names in the metadata, as older versions take them: Chroma puts them into the settings of the index
    "hnsw:space": "space",
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:resize_factor": "resize_factor",
    "hnsw:sync_threshold": "sync_threshold",
}
_SEARCHED = {"hnsw": ("ef_construction", "ef_search"), "spann": ("ef_construction", "ef_search")}


class ChromaStore(Store):
    """A Chroma folder or server. Telemetry is off."""

    kind, why_not = "Chroma", "holds one vector of each chunk"
    takes = frozenset({"path", "host", "port", "ssl", "tenant", "database", "upgrade_store"})
    examine = staticmethod(examine_chroma)

    @classmethod
    def problems(cls, config: StoreConfig) -> list[str]:
        problems = super().problems(config)
        if config.host is None:
            problems += [f"--{name}: needs --host" for name in ("port", "ssl") if getattr(config, name)]
        if config.port is not None and not 1 <= config.port <= 65535:
            problems.append(f"--port {config.port}: must be 1 to 65535")
        if config.host is not None and ("/" in config.host or "@" in config.host):
            problems.append("--host: must be a host name or address alone; --port and --ssl say the rest")
        return problems

    @classmethod
    def name_problem(cls, name: str) -> str | None:
        if _NAME.fullmatch(name):
            return None
        return "a Chroma name has 3 to 512 letters, digits, '.', '_' or '-', and starts and ends with a letter or digit"

    def __init__(self, config: StoreConfig, folder: Path | None = None):
        """folder: the one to open for config.path."""
        chromadb, settings = import_chromadb()
        self.config, self.served = config, config.path is None
        self.tenant, self.database = config.tenant or TENANT, config.database or DATABASE
        part = {"tenant": self.tenant, "database": self.database}
        self.location = f"in {config.path}" if config.path else f"at {config.host}:{config.chroma_port}"
        if config.tenant or config.database:
            self.location += f", database {self.database} of tenant {self.tenant}"
        if config.path is not None:
            self.folder = folder or config.path
            self._check_database()
            with self.failures():
                self.client = chromadb.PersistentClient(str(self.folder), settings=settings, **part)
            return
        self.secret = secret(TOKEN)
        headers = {"Authorization": f"Bearer {self.secret}", "X-Chroma-Token": self.secret} if self.secret else {}
        self.headers = headers
        _check_server(config, headers)
        self._check_database()
        server = {"host": config.host, "port": config.chroma_port, "ssl": config.ssl, "headers": headers}
        with self.failures():
            self.client = chromadb.HttpClient(**server, settings=settings, **part)

    def _check_database(self) -> None:
        """BadInput, with those there, if the tenant or database that the flags name does not exist."""
        if not (self.config.tenant or self.config.database) or self._has_database():
            return
        there = self._databases()
        own = [database for tenant, database in there if tenant == self.tenant]
        listed = _listed(there, self.tenant) or "none that is listed"
        if own:
            hint = nearest(self.database, own)
            raise BadInput(
                f"--database {self.database}: not a database of tenant {self.tenant}; there: {listed}.{hint}"
            )
        hint = nearest(self.tenant, [tenant for tenant, _ in there])
        raise BadInput(f"--tenant {self.tenant}: {self.config.place} has no database of it; there: {listed}.{hint}")

    def _has_database(self) -> bool:
        if not self.served:
            return (self.tenant, self.database) in self._databases()
        answer = _ask(self.config, self.headers, "tenants", self.tenant, "databases", self.database)
        return answer is None or answer.status_code != 404

    def _databases(self) -> list[tuple[str, str]]:
        """Returns (tenant, database) of all of a folder; of a server, which lists no tenants, those of this tenant."""
        if self.served:
            answer = _ask(self.config, self.headers, "tenants", self.tenant, "databases")
            rows = answer.json() if answer is not None and answer.is_success else []
            return sorted((self.tenant, one["name"]) for one in rows)
        try:
            return sorted(rows_of(self.folder / CHROMA_FILE, "select tenant_id, name from databases"))
        except sqlite3.Error:  # a new folder, or one from before there were tenants
            return [(TENANT, DATABASE)]

    def elsewhere(self, empty: bool) -> str:
        with self.failures():
            others = [one for one in self._databases() if one != (self.tenant, self.database)]
        if not others and not empty:
            return ""
        there = f"; others there: {_listed(others, self.tenant)}" if others else ""
        return f" in database {self.database} of tenant {self.tenant} (--database and --tenant name another{there})"

    def errors(self) -> tuple[type[Exception], ...]:
        import httpx
        from chromadb.errors import ChromaError

        return ChromaError, httpx.HTTPError

    def names(self) -> list[str]:
        with self.failures():
            return sorted(collection.name for collection in self.client.list_collections())

    def open(self, name: str) -> "ChromaCollection":
        there = self.names()
        if name not in there:
            raise self.no_collection(name, {one: ChromaCollection(self, one).count() for one in there})
        return ChromaCollection(self, name)

    def create(
        self,
        name: str,
        size: int | None,
        about: dict[str, Any],
        cosine: bool = True,
        like: "ChromaCollection | None" = None,
    ) -> "ChromaCollection":
        """Chroma learns d from the first vectors. Without any (size None) each is [0.0]."""
        self.check_new(name, self.name_problem(name))
        about = {**(like.described if like else {}), **about}
        if size is None:
            about = {"vectors": PLACEHOLDER, **about}
        configuration = None if size is None else self._configuration(cosine, like)
        with self.failures():
            self.client.create_collection(
                name, embedding_function=None, metadata=about or None, configuration=configuration
            )
        return ChromaCollection(self, name)

    @staticmethod
    def _configuration(cosine: bool, like: "ChromaCollection | None") -> dict[str, Any]:
        """Returns the settings of the index: those of `like`, but never fewer candidates than _CANDIDATES.

        Vectors of length 1 (cosine) rank alike by each space, so that of `like` stays.
        """
        kind, own = like.index if like and like.index else ("hnsw", {})
        space = own.get("space", "cosine") if cosine else "ip"
        more = {name: max(own.get(name, 0), _CANDIDATES) for name in _SEARCHED[kind]}
        return {kind: {**own, **more, "space": space}}

    def delete(self, name: str) -> None:
        with self.failures():
            self.client.delete_collection(name)


class ChromaCollection(Collection):
    def __init__(self, store: ChromaStore, name: str):
        self.store, self.name, self.layout = store, name, {}
        with store.failures():
            self.inner = store.client.get_collection(name, embedding_function=None)

    @property
    def about(self) -> dict[str, Any]:
        return self.inner.metadata or {}

    @property
    def described(self) -> dict[str, Any]:
        """Returns its metadata for a collection like it: without what reindex and this file wrote, and without the
        settings that older versions of Chroma kept there."""
        about = self.about
        return {name: about[name] for name in about if name != "vectors" and not name.startswith((OWN, "hnsw:"))}

    @property
    def index(self) -> tuple[str, dict[str, Any]] | None:
        """Returns the kind (hnsw, spann) and the settings of the index; None where the vectors are placeholders."""
        if self.about.get("vectors") == PLACEHOLDER:
            return None
        configured = self.inner.configuration_json
        kind = next((kind for kind in _SEARCHED if configured.get(kind)), None)
        return kind and (kind, {name: value for name, value in configured[kind].items() if value is not None})

    def settings(self) -> dict[str, Any]:
        kind, own = self.index or ("", {})
        function = self.inner.configuration_json.get("embedding_function") or {}
        named = function.get("type") not in (None, "legacy")  # legacy: none is recorded
        record = {FUNCTION: function.get("name") or function["type"]} if named else {}
        legacy = {name: value for name, value in self.about.items() if name.startswith("hnsw:")}
        legacy = {name: value for name, value in legacy.items() if own.get(_OLDER.get(name)) != value}
        return {f"{kind}.{name}": value for name, value in own.items()} | record | legacy

    def mend(self, setting: str) -> str:
        if setting.rpartition(".")[2] in _SEARCHED["hnsw"]:
            return " (fewer candidates would miss neighbours)"
        return _OWN_EMBEDDINGS if setting == FUNCTION else ""

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
            yield from self.with_text(_chunks(got), mend)

    def _pages(self, where: dict[str, Any] | None, page: int, include: list[str]) -> Iterator[dict[str, Any]]:
        """Yields pages by offset: Chroma's only way; it orders by insertion and slows down with the offset.

        A chunk deleted before the offset would shift the rest unnoticed. So each page starts with the last chunk of the
        page before, and Shifted is raised if another chunk is there.
        """
        offset, last = 0, None
        while True:
            overlap = 0 if last is None else 1
            self.free_page()
            limits = {"limit": page + overlap, "offset": offset - overlap}
            with self.filtered(where):
                got = self.inner.get(where=where, include=include, **limits)
            if overlap and got["ids"][:1] != [last]:
                raise Shifted(
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

    def refused(self, error: Exception) -> bool:
        from chromadb.errors import InvalidArgumentError

        return isinstance(error, (InvalidArgumentError, ValueError, TypeError))

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        if not ids:  # Chroma refuses an empty list
            return {}
        with self.store.failures():
            got = self.inner.get(ids=list(ids), include=["documents", "metadatas"])
        return {chunk.id: chunk for chunk in _chunks(got)}

    def remove(self, ids: Sequence[str]) -> None:
        with self.store.failures():
            for start in range(0, len(ids), PAGE):
                self.inner.delete(ids=list(ids[start : start + PAGE]))

    def describe(self, about: dict[str, Any]) -> None:
        with self.store.failures():
            self.inner.modify(metadata={**self.about, **about})

    def nearest(self, vectors: np.ndarray, k: int, native: dict[str, Any] | None) -> list[list[Chunk]]:
        include = ["documents", "metadatas", "embeddings"]
        got = self.inner.query(query_embeddings=vectors, n_results=k, where=native, include=include)
        names = ("ids", *include)
        return [_chunks(dict(zip(names, answer))) for answer in zip(*(got[name] for name in names))]

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


def _chunks(got: dict[str, Any]) -> list[Chunk]:
    """Returns the chunks of an answer. Chroma returns the fields of a chunk in no fixed order, so they are sorted."""
    texts, fields, vectors = got["documents"], got["metadatas"], got.get("embeddings")
    vectors = [None] * len(texts) if vectors is None else np.asarray(vectors, dtype=np.float32)
    return [
        Chunk(chunk_id, text or "", dict(sorted((metadata or {}).items())), vector)
        for chunk_id, text, metadata, vector in zip(got["ids"], texts, fields, vectors)
    ]


def _listed(databases: list[tuple[str, str]], own: str) -> str:
    return ", ".join(name if tenant == own else f"{name} (tenant {tenant})" for tenant, name in databases)


def _address(config: StoreConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.ssl else 'http'}://{host}:{config.chroma_port}/api/v2"


def _ask(config: StoreConfig, headers: dict[str, str], *path: str) -> Any:
    """Returns the answer of a server that has answered before, or None."""
    import httpx

    url = "/".join([_address(config), *(quote(part, safe="") for part in path)])
    try:
        return httpx.get(url, headers=headers, timeout=_ANSWER_SECONDS)
    except httpx.HTTPError:
        return None


def _check_server(config: StoreConfig, headers: dict[str, str]) -> None:
    """BadInput unless a Chroma server answers and takes the token. The client's own errors do not say which it is."""
    import httpx

    url = f"{_address(config)}/auth/identity"
    with network_client(url):
        client = httpx.Client(headers=headers, timeout=_ANSWER_SECONDS)
    try:
        with client:
            answer = client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = without(str(error) or type(error).__name__, *headers.values())
        raise BadInput(f"{config.place}: no Chroma server answers there ({reason}){proxy_note(url)}; {_MEND}") from None
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
