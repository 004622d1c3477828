"""Qdrant: its local mode in this process, or a server.

- Local mode locks its folder, one client at a time, and holds all of its collections in memory.
- Scrolling is by id, so every page costs the same and no deletion shifts the next.
"""

import json
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data_prep.common.console import say
from data_prep.common.environment import network_client, proxy_note
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.secrets import secret, url_problem
from data_prep.stores.base import HTTPS_PORT, OWN, PAGE, Chunk, Collection, Store, StoreConfig
from data_prep.stores.folders import examine_qdrant
from data_prep.stores.payloads import TEXT_FIELDS, json_texts, name_of, put, take, text_path, value_at
from data_prep.stores.qdrant_settings import DENSE, complete, creation, other_vectors, settings, values_of

KEY = "QDRANT_API_KEY"
PORT = 6333
LOOKED_AT = 100  # points whose fields are listed
_ANSWER_SECONDS = 60
_MEND = "start it, or name one that this machine can reach"
_FILTER_KEYS = {"must", "should", "must_not", "min_should"}


def port_of(url: str) -> int:
    """Returns the port of a server's URL. Without one: Qdrant's own for http, and for https, by a proxy, https' own."""
    parts = urlsplit(url)
    return parts.port or (HTTPS_PORT if parts.scheme == "https" else PORT)


class QdrantStore(Store):
    """A folder of Qdrant's local mode, or a server."""

    kind = "Qdrant"
    takes = frozenset({"path", "url", "text_field", "vector_name", "upgrade_store"})
    examine = staticmethod(examine_qdrant)

    @classmethod
    def problems(cls, config: StoreConfig) -> list[str]:
        problems = super().problems(config)
        if config.url is not None:
            refusal = "holds a user or password; put the key into QDRANT_API_KEY (environment or .env)"
            problems += filter(None, [url_problem(config.url, "--url", "http://localhost:6333", refusal)])
        return problems

    @classmethod
    def name_problem(cls, name: str) -> str | None:
        if 0 < len(name) < 256 and not set(name) & set('<>:"/\\|?*\0\x1f'):
            return None
        return 'a Qdrant name has 1 to 255 characters, none of them < > : " / \\ | ? *'

    def __init__(self, config: StoreConfig, folder: Path | None = None):
        """folder: the one to open for config.path."""
        try:
            from qdrant_client import QdrantClient
        except ImportError:
            raise Failed("--store qdrant: needs its client: pip install 'embedfleet[stores]'") from None
        self.config, self.served = config, config.path is None
        if config.path is not None:
            self.location = f"in {config.path}"
            with self.failures(), _quiet():
                self.client = QdrantClient(path=str(folder or config.path))
            return
        self.secret = secret(KEY)
        self.location = f"at {config.url}"
        if self.secret and config.url.startswith("http:"):
            say(f"note: --url {config.url} is not https: {KEY} travels unencrypted")
        with _quiet(), network_client(config.url):
            options = {"api_key": self.secret, "timeout": _ANSWER_SECONDS, "check_compatibility": False}
            self.client = QdrantClient(url=config.url, port=port_of(config.url), **options)
        self._check_server()

    def _check_server(self) -> None:
        """BadInput unless a Qdrant server answers and takes the key."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        flags, port = self.config.place, port_of(self.config.url)
        if urlsplit(self.config.url).port is None:
            other = PORT if port == HTTPS_PORT else 80
            flags += f" (asked at port {port}; write the port into the URL if it is another, such as {other})"
        try:
            self.client.get_collections()
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                state = f"refuses the key in {KEY}" if self.secret else f"wants a key: set {KEY} (environment or .env)"
                raise BadInput(f"{flags}: the server {state} (HTTP {error.status_code})") from None
            if error.status_code >= 500:
                raise self.failure(error) from None
            raise BadInput(f"{flags}: what answers there is no Qdrant server (HTTP {error.status_code})") from None
        except ResponseHandlingException as error:
            note = proxy_note(self.config.url)
            raise BadInput(f"{flags}: no Qdrant server answers there ({self.reason(error)}){note}; {_MEND}") from None
        except ValueError:
            raise BadInput(f"{flags}: what answers there is no Qdrant server (its answer is not JSON)") from None

    def errors(self) -> tuple[type[Exception], ...]:
        from qdrant_client.http.exceptions import ApiException

        return (ApiException,)

    def failure(self, error: Exception) -> Failed:
        if "already accessed by another instance" in str(error):
            return Failed(
                f"{self.config.place}: another process has this Qdrant folder open, and local mode allows one at a "
                "time; end it, or run a Qdrant server and use --url"
            )
        return super().failure(error)

    def message(self, error: Exception) -> str:
        """Returns the server's own message, if there is one."""
        try:
            return json.loads(getattr(error, "content", b"") or b"")["status"]["error"]
        except (ValueError, KeyError, TypeError):
            return str(error)

    def names(self) -> list[str]:
        with self.failures():
            return sorted(one.name for one in self.client.get_collections().collections)

    def aliases(self) -> dict[str, str]:
        with self.failures():
            return {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}

    def open(self, name: str, text_field: str | None = None, vector_name: str | None = None) -> "QdrantCollection":
        """text_field, vector_name: of this collection; default: the config's."""
        there = self.names()
        if name not in there and name not in self.aliases():
            with self.failures():
                counts = {one: self.client.count(one).count for one in there}
            raise self.no_collection(name, counts)
        config = self.config
        return QdrantCollection(self, name, text_field or config.text_field, vector_name or config.vector_name)

    def create(
        self,
        name: str,
        size: int | None,
        about: dict[str, Any],
        cosine: bool = True,
        like: "QdrantCollection | None" = None,
    ) -> "QdrantCollection":
        """The collection's metadata names its text field, so that nobody has to give it again."""
        from qdrant_client import models

        self.check_new(name, self.name_problem(name))
        assert size is not None, "Qdrant takes texts without vectors only in a collection that has none"
        layout = like.layout if like else {"text_field": self.config.text_field, "vector_name": self.config.vector_name}
        vector_name = layout.get("vector_name")
        kept = {key: value for key, value in like.about.items() if not key.startswith(OWN)} if like else {}
        about = {"text_field": layout["text_field"] or TEXT_FIELDS[0], **kept, **about}
        distance = models.Distance.COSINE if cosine else models.Distance.DOT
        params = models.VectorParams(size=size, distance=distance)
        options = {"vectors_config": {vector_name: params} if vector_name else params}
        if like:
            options = creation(like.info, vector_name, size, distance)
        with self.failures(), _quiet():
            self.client.create_collection(name, metadata=about, **options)
            if like:
                complete(self.client, name, like.info)
            kept = self.client.get_collection(name).config.metadata or {}
            if not about.items() <= kept.items():
                self.client.delete_collection(name)
                lacking = "keeps no metadata of collections; it needs Qdrant 1.16 or newer"
                raise BadInput(f"--url {self.config.url}: {lacking}")
        return QdrantCollection(self, name, None, vector_name)

    def delete(self, name: str) -> None:
        with self.failures():
            self.client.delete_collection(name)

    def swap_alias(self, alias: str, name: str) -> None:
        from qdrant_client import models

        create = models.CreateAlias(alias_name=alias, collection_name=name)
        steps = [models.CreateAliasOperation(create_alias=create)]
        if alias in self.aliases():
            steps.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        with self.failures():
            self.client.update_collection_aliases(steps)


class QdrantCollection(Collection):
    """Ids are whole numbers or UUIDs, here as text. A chunk's metadata is its payload without the text."""

    def __init__(self, store: QdrantStore, name: str, text_field: str | None, vector_name: str | None):
        self.store, self.name = store, name
        with store.failures():
            self.info = store.client.get_collection(name)
        self.params, self.about = self.info.config.params, self.info.config.metadata or {}
        self.vector_name = self._vector_name(vector_name)
        self.text_path = self._text_path(text_field or self.about.get("text_field"))
        self.text_field = name_of(self.text_path)

    @property
    def layout(self) -> dict[str, str]:
        named = {"vector_name": self.vector_name} if self.vector_name else {}
        return {"text_field": self.text_field, **named}

    @property
    def others(self) -> list[str]:
        """Returns the names of its other vectors."""
        return other_vectors(self.params, self.vector_name)

    def settings(self) -> dict[str, Any]:
        with self.store.failures():
            return settings(self.store.client.get_collection(self.name), self.vector_name)

    def rest(self, ids: Sequence[str]) -> dict[str, Any]:
        """Returns the points' other vectors."""
        if not self.others:
            return {}
        asked = {"with_payload": False, "with_vectors": self.others}
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [_point_id(one) for one in ids], **asked)
        return {str(point.id): values_of(point, self.others) for point in points}

    def most(self, limit: str, page: int) -> int:
        """Returns how many points one request may name: a page, or less where strict mode says so."""
        strict = self.info.config.strict_mode_config
        allowed = getattr(strict, limit) if strict and strict.enabled else None
        return min(page, allowed or page)

    @property
    def size(self) -> int | None:
        vectors = self.params.vectors
        if isinstance(vectors, dict):
            vectors = vectors.get(self.vector_name)
        return vectors.size if vectors and vectors.multivector_config is None else None

    def _vector_name(self, asked: str | None) -> str | None:
        """Returns the requested or the only named vector; None if there is no such one (see `_vectors_read`)."""
        vectors = self.params.vectors
        names = sorted(vectors) if isinstance(vectors, dict) else []
        if asked is not None and asked not in names:
            listed = f"named vectors: {', '.join(names)}" if names else "one vector without a name"
            raise BadInput(f"--vector-name {asked}: {self.name} has {listed}.{nearest(asked, names)}")
        return asked or (names[0] if len(names) == 1 else None)

    def _text_path(self, asked: str | None) -> tuple[str, ...]:
        with self.store.failures():
            points, _ = self.store.client.scroll(self.name, limit=LOOKED_AT, with_payload=True)
        payloads = [point.payload or {} for point in points]
        path, note = text_path(payloads, asked, self.name)
        if note:
            say(note)
        if count := json_texts(payloads, path):
            mend = f"a path names the text in it, such as --text-field {name_of((*path, 'text'))}"
            say(f"note: {self.name}: {count:,} of the first {len(payloads):,} texts are JSON objects; {mend}")
        return path

    def count(self, where: dict[str, Any] | None = None) -> int:
        with self.filtered(where) as native:
            return self.store.client.count(self.name, count_filter=native, exact=True).count

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        vectors = self._vectors_read() if embeddings else False
        mend = f"their payload field {self.text_field!r} is empty; fill it, or leave them out with --where"
        offset = None
        while True:
            self.free_page()
            with self.filtered(where) as native:
                options = {"limit": self.most("max_query_limit", page), "offset": offset}
                options |= {"with_payload": True, "with_vectors": vectors}
                points, offset = self.store.client.scroll(self.name, scroll_filter=native, **options)
            yield from self.with_text([self._chunk(point, embeddings) for point in points], mend)
            if offset is None:
                return

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [_point_id(one) for one in ids], with_payload=True)
        return {str(point.id): self._chunk(point, embedding=False) for point in points}

    def _chunk(self, point, embedding: bool) -> Chunk:
        payload = dict(sorted((point.payload or {}).items()))
        text, payload = take(payload, self.text_path)
        vector = self._embedding(point) if embedding else None
        return Chunk(str(point.id), text if isinstance(text, str) else "", payload, vector)

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        from qdrant_client import models

        points = []
        for chunk in chunks:
            if value_at(chunk.metadata, self.text_path) is not None:
                raise BadInput(f"--collection {self.name}: {chunk.id} has a metadata field {self.text_field!r} as well")
            named = vector = chunk.embedding.tolist()
            if self.vector_name or chunk.rest:
                named = {self.vector_name or DENSE: vector, **(chunk.rest or {})}
            payload = put(chunk.metadata, self.text_path, chunk.text)
            points.append(models.PointStruct(id=_point_id(chunk.id), vector=named, payload=payload))
        with self.store.failures(), _quiet():
            page = self.most("upsert_max_batchsize", PAGE)
            for start in range(0, len(points), page):
                self.store.client.upsert(self.name, points[start : start + page], wait=True)

    def remove(self, ids: Sequence[str]) -> None:
        with self.store.failures():
            for start in range(0, len(ids), PAGE):
                part = [_point_id(one) for one in ids[start : start + PAGE]]
                self.store.client.delete(self.name, part, wait=True)

    def describe(self, about: dict[str, Any]) -> None:
        with self.store.failures():
            self.store.client.update_collection(self.name, metadata=about)
        self.about = {**self.about, **about}

    def query(self, vectors: np.ndarray, k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        self._vectors_read()  # before the size is compared: its message says more
        return super().query(vectors, k, where)

    def nearest(self, vectors: np.ndarray, k: int, native: Any) -> list[list[Chunk]]:
        from qdrant_client import models

        options = {"limit": k, "filter": native, "using": self.vector_name}
        options |= {"with_payload": True, "with_vector": self._vectors_read()}
        requests = [models.QueryRequest(query=vector.tolist(), **options) for vector in vectors]
        page, answers = self.most("search_max_batchsize", len(requests)), []
        for start in range(0, len(requests), page):
            answers += self.store.client.query_batch_points(self.name, requests[start : start + page])
        return [[self._chunk(point, embedding=True) for point in answer.points] for answer in answers]

    def _vectors_read(self) -> bool | list[str]:
        """Returns Qdrant's with_vectors for the vector to read. BadInput if there is none."""
        vectors = self.params.vectors
        if not vectors or (self.vector_name is None and isinstance(vectors, dict)):
            names = ", ".join(sorted(vectors or {}))
            mend = f"choose one with --vector-name: {names}" if names else "it holds no dense vector"
            raise BadInput(f"--collection {self.name}: has no embedding to read: {mend}")
        if (vectors[self.vector_name] if self.vector_name else vectors).multivector_config is not None:
            raise BadInput(f"--collection {self.name}: its vectors are one per token, not one embedding per text")
        return [self.vector_name] if self.vector_name else True

    def _embedding(self, point) -> np.ndarray:
        vector = point.vector if self.vector_name is None else (point.vector or {}).get(self.vector_name)
        if vector is None:
            raise BadInput(f"--collection {self.name}: the point {point.id} has no such vector; leave it out (--where)")
        return np.asarray(vector, dtype=np.float32)

    def native_filter(self, where: dict[str, Any]) -> Any:
        """Returns Qdrant's filter for a JSON object. Raises BadInput.

        The object is in Qdrant's own form (must, should, must_not, min_should), or {field: value, …} for fields that
        all hold these texts, whole numbers or booleans.
        """
        from pydantic import ValidationError
        from qdrant_client import models

        if not set(where) & _FILTER_KEYS:
            wrong = [key for key, value in where.items() if not isinstance(value, str | int | bool)]
            if wrong:
                raise BadInput(
                    f"--where {json.dumps(where)}: {', '.join(wrong)}: the plain form takes a text, a whole number or "
                    'a boolean; for more use Qdrant\'s own, such as {"must": [{"key": "year", "range": {"gte": 2020}}]}'
                )
            matches = {key: models.MatchValue(value=value) for key, value in where.items()}
            return models.Filter(must=[models.FieldCondition(key=key, match=match) for key, match in matches.items()])
        try:
            return models.Filter(**where)
        except ValidationError as error:
            deepest = max(error.errors(), key=lambda one: len(one["loc"]))
            keys = ".".join(str(part) for part in deepest["loc"])
            raise BadInput(f"--where {json.dumps(where)}: is no Qdrant filter: {keys}: {deepest['msg']}") from None

    def refused(self, error: Exception) -> bool:
        from qdrant_client.http.exceptions import UnexpectedResponse

        return isinstance(error, (UnexpectedResponse, ValueError)) and getattr(error, "status_code", 400) in (400, 422)


def _point_id(chunk_id: str) -> int | str:
    """Returns Qdrant's id for a chunk's id. Raises BadInput unless it is a whole number or a UUID."""
    if chunk_id.isascii() and chunk_id.isdigit() and str(int(chunk_id)) == chunk_id:
        return int(chunk_id)
    try:
        if str(uuid.UUID(chunk_id)) == chunk_id:
            return chunk_id
    except ValueError:
        pass
    raise BadInput(f"id {chunk_id!r}: Qdrant takes whole numbers and UUIDs (8-4-4-4-12, small letters) only")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the client's warnings about keys and sizes; messages here or docs/stores.md cover them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
