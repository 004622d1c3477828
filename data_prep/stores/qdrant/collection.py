"""A collection of Qdrant."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.stores.base import PAGE, Chunk, Collection
from data_prep.stores.payloads import json_texts, name_of, put, take, text_path, value_at
from data_prep.stores.qdrant.settings import DENSE, about_of, complete, other_vectors, settings, settings_of, values_of

if TYPE_CHECKING:
    from data_prep.stores.qdrant.store import QdrantStore

LOOKED_AT = 100  # points whose fields are listed
LOSSY = {"turbo4": 0.9, "turbo8": 0.99}  # datatypes whose vectors are read back with so much of the cosine
_FILTER_KEYS = {"must", "should", "must_not", "min_should"}


class QdrantCollection(Collection):
    """Ids are whole numbers or UUIDs, here as text. A chunk's metadata is its payload without the text."""

    def __init__(self, store: "QdrantStore", name: str, text_field: str | None, vector_name: str | None):
        self.store, self.name = store, name
        with store.failures():
            self.info = store.client.get_collection(name)
        self.params, strict = self.info.config.params, self.info.config.strict_mode_config
        self.strict = strict if strict and strict.enabled else None
        self.vector_name = self._vector_name(vector_name)
        read = (self.vector_name or DENSE) if self.dense else None
        self.about = about_of(self.info.config.metadata or {}, read)
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

    def lost(self, made: "QdrantCollection") -> list[str]:
        if made.whole:
            return super().lost(made)
        return self.differences(settings_of(self.dense), settings_of(made.dense))

    def rest(self, ids: Sequence[str]) -> dict[str, Any]:
        """Returns the points' other vectors."""
        if not self.others:
            return {}
        asked = {"with_payload": False, "with_vectors": self.others}
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [point_id(one) for one in ids], **asked)
        return {str(point.id): values_of(point, self.others) for point in points}

    def mend(self, setting: str) -> str:
        part = setting.removeprefix("params.vectors.")
        named = self.params.vectors if isinstance(self.params.vectors, dict) else {}
        if part != setting and (self.vector_name or DENSE) not in named and part.split(".")[0] in named:
            return f" (--vector-name {part.split('.')[0]} embeds that vector anew and takes the others along)"
        if setting.endswith(".datatype"):
            return " (the numbers of a model are no whole ones)"
        if setting == "params.sharding_method":
            return " (points of custom shards need their key, which no flag names)"
        return ""

    def most(self, limit: str, page: int) -> int:
        """Returns how many points one request may name: a page, or less where strict mode says so."""
        return min(page, (self.strict and getattr(self.strict, limit)) or page)

    @property
    def dense(self) -> Any:
        """Returns the models.VectorParams of the vector that is read; None if there is no such one."""
        vectors = self.params.vectors
        return vectors.get(self.vector_name or DENSE) if isinstance(vectors, dict) else vectors

    @property
    def normalises(self) -> bool:
        return self.dense is not None and self.dense.distance == "Cosine"

    @property
    def size(self) -> int | None:
        return self.dense.size if self.dense and self.dense.multivector_config is None else None

    @property
    def fidelity(self) -> float:
        stored_as = getattr(self.dense and self.dense.datatype, "value", None)
        return LOSSY.get(stored_as, super().fidelity)

    def _vector_name(self, asked: str | None) -> str | None:
        """Returns the requested or the only named vector; None if it has no name, or several have (`_vectors_read`)."""
        vectors = self.params.vectors
        names = sorted(filter(None, vectors)) if isinstance(vectors, dict) else []
        if asked is not None and asked not in names:
            listed = f"named vectors: {', '.join(names)}" if names else "one vector without a name"
            raise BadInput(f"--vector-name {asked}: {self.name} has {listed}.{nearest(asked, names)}")
        return asked or (names[0] if len(names) == 1 and DENSE not in vectors else None)

    def _text_path(self, asked: str | None) -> tuple[str, ...]:
        with self.store.failures():
            looked_at = self.most("max_query_limit", LOOKED_AT)
            points, _ = self.store.client.scroll(self.name, limit=looked_at, with_payload=True)
        payloads = [point.payload or {} for point in points]
        path, note = text_path(payloads, asked, self.name)
        if note:
            say(note)
        if count := json_texts(payloads, path):
            mend = f"a path names the text in it, such as --text-field {name_of((*path, 'text'))}"
            say(f"note: {self.name}: {count:,} of the first {len(payloads):,} texts are JSON objects; {mend}")
        return path

    def count(self, where: dict[str, Any] | None = None) -> int:
        if self.strict and self.strict.search_allow_exact is False:  # such a server counts exactly no more either
            return sum(map(len, self._pages(where, 10 * PAGE, with_payload=False)))
        with self.filtered(where) as native:
            return self.store.client.count(self.name, count_filter=native, exact=True).count

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        vectors = self._vectors_read() if embeddings else False
        mend = f"their payload field {self.text_field!r} is empty; fill it, or leave them out with --where"
        for points in self._pages(where, page, with_payload=True, with_vectors=vectors):
            yield from self.with_text([self._chunk(point, embeddings) for point in points], mend)

    def _pages(self, where: dict[str, Any] | None, page: int, **parts: Any) -> Iterator[list[Any]]:
        """Yields pages of points in the order of ids. parts: with_payload and with_vectors of Qdrant."""
        offset, limit = None, self.most("max_query_limit", page)
        while True:
            self.free_page()
            with self.filtered(where) as native:
                points, offset = self.store.client.scroll(
                    self.name, scroll_filter=native, limit=limit, offset=offset, **parts
                )
            yield points
            if offset is None:
                return

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [point_id(one) for one in ids], with_payload=True)
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
            if isinstance(self.params.vectors, dict) or chunk.rest:
                named = {self.vector_name or DENSE: vector, **(chunk.rest or {})}
            payload = put(chunk.metadata, self.text_path, chunk.text)
            points.append(models.PointStruct(id=point_id(chunk.id), vector=named, payload=payload))
        with self.store.failures(), self.store.quiet():
            page = self.most("upsert_max_batchsize", PAGE)
            for start in range(0, len(points), page):
                self.store.client.upsert(self.name, points[start : start + page], wait=True)

    def remove(self, ids: Sequence[str]) -> None:
        with self.store.failures():
            for start in range(0, len(ids), PAGE):
                part = [point_id(one) for one in ids[start : start + PAGE]]
                self.store.client.delete(self.name, part, wait=True)

    def prepare(self, like: "QdrantCollection") -> None:
        with self.store.failures():
            complete(self.store.client, self.name, like.info)

    def finish(self, like: Collection | None = None) -> None:
        """Waits until a server has made its indexes: before, it searches the new points exactly.

        Raises Failed if that went wrong.
        """
        said = False
        while True:
            with self.store.failures():
                info = self.store.client.get_collection(self.name)
            if wrong := getattr(info.optimizer_status, "error", None):
                raise Failed(f"--collection {self.name}: Qdrant {self.store.location} makes no index: {wrong}")
            if info.status != "yellow":
                return
            if not said:
                say(f"{self.name}: waiting until Qdrant has made its indexes")
            said = True
            _pause(1.0)

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
        if not self.dense:
            names = ", ".join(sorted(vectors or {}))
            mend = f"choose one with --vector-name: {names}" if names else "it holds no dense vector"
            raise BadInput(f"--collection {self.name}: has no embedding to read: {mend}")
        if self.dense.multivector_config is not None:
            raise BadInput(f"--collection {self.name}: its vectors are one per token, not one embedding per text")
        return [self.vector_name or DENSE] if isinstance(vectors, dict) else True

    def _embedding(self, point) -> np.ndarray:
        vector = point.vector.get(self.vector_name or DENSE) if isinstance(point.vector, dict) else point.vector
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

        status = getattr(error, "status_code", 400)  # 403: strict mode of older servers
        return isinstance(error, (UnexpectedResponse, ValueError)) and status in (400, 403, 422)


def point_id(chunk_id: str) -> int | str:
    """Returns Qdrant's id for a chunk's id. Raises BadInput unless it is a whole number or a UUID."""
    if chunk_id.isascii() and chunk_id.isdigit() and str(int(chunk_id)) == chunk_id:
        return int(chunk_id)
    try:
        if str(uuid.UUID(chunk_id)) == chunk_id:
            return chunk_id
    except ValueError:
        pass
    raise BadInput(f"id {chunk_id!r}: Qdrant takes whole numbers and UUIDs (8-4-4-4-12, small letters) only")


def _pause(seconds: float) -> None:
    time.sleep(seconds)
