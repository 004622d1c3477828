"""Qdrant: its local mode in this process, or a server.

Local mode locks its folder and holds all of its collections in memory: of one folder there is one client at a time.
Scrolling is by id, so pages cost the same wherever they lie and no deletion shifts them.
"""

import json
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed, nearest
from data_prep.common.secrets import secret, without
from data_prep.stores.base import PAGE, QUERIES, Chunk, StoreConfig, free_page, with_text, wrong_size

if TYPE_CHECKING:
    import numpy as np

KEY = "QDRANT_API_KEY"
# What LangChain, fastembed and most hands call it; one of them has to be there alone to be taken.
TEXT_FIELDS = ("text", "page_content", "document", "content")
LOOKED_AT = 100  # points whose fields are listed
_ANSWER_SECONDS = 60
_FILTER_KEYS = {"must", "should", "must_not", "min_should"}


def name_problem(name: str) -> str | None:
    """Why no collection can be called so."""
    if 0 < len(name) < 256 and not set(name) & set('<>:"/\\|?*\0\x1f'):
        return None
    return 'a Qdrant name has 1 to 255 characters, none of them < > : " / \\ | ? *'


class QdrantStore:
    """A folder of Qdrant's local mode, or a server."""

    def __init__(self, config: StoreConfig, create: bool = False):
        try:
            from qdrant_client import QdrantClient
        except ImportError:
            raise Failed("--store qdrant: needs its client: pip install 'embedfleet[stores]'") from None
        self.config, self.key = config, None
        if config.path is not None:
            self.said = f"in {config.path}"
            _check_folder(config.path, create)
            with self.failures(), _quiet():
                self.client = QdrantClient(path=str(config.path))
            return
        self.key = secret(KEY)
        self.said = f"at {config.url}"
        if self.key and config.url.startswith("http:"):
            say(f"note: --url {config.url} is not https: {KEY} travels unencrypted")
        with _quiet():
            options = {"api_key": self.key, "timeout": _ANSWER_SECONDS, "check_compatibility": False}
            self.client = QdrantClient(url=config.url, **options)
        self._check_server()

    def _check_server(self) -> None:
        """BadInput unless a Qdrant server answers there and takes the key."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        place = self.config.place
        try:
            self.client.get_collections()
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                state = f"refuses the key in {KEY}" if self.key else f"wants a key: set {KEY} (environment or .env)"
                raise BadInput(f"{place}: the server {state} (HTTP {error.status_code})") from None
            if error.status_code >= 500:
                raise Failed(f"Qdrant failed {self.said}: {self.reason(error)}") from None
            raise BadInput(f"{place}: what answers there is no Qdrant server (HTTP {error.status_code})") from None
        except ResponseHandlingException as error:
            raise BadInput(f"{place}: no Qdrant server answers there ({self.reason(error)})") from None
        except ValueError:
            raise BadInput(f"{place}: what answers there is no Qdrant server (its answer is not JSON)") from None

    @contextmanager
    def failures(self) -> Iterator[None]:
        """A locked folder, a lost server, a full disk: one line."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except BadInput:
            raise
        except (ApiException, ValueError, RuntimeError) as error:
            if "already accessed by another instance" in str(error):
                raise Failed(
                    f"{self.config.place}: another process has this Qdrant folder open, and local mode allows one at a "
                    "time; end it, or run a Qdrant server and use --url"
                ) from None
            raise Failed(f"Qdrant failed {self.said}: {self.reason(error)}") from None

    def reason(self, error: Exception) -> str:
        content = getattr(error, "content", b"")
        try:  # the server's own words, where it has some
            text = json.loads(content)["status"]["error"]
        except (ValueError, KeyError, TypeError):
            text = str(error)
        return without(next(iter(text.splitlines()), "") or type(error).__name__, self.key)

    def names(self) -> list[str]:
        with self.failures():
            return sorted(one.name for one in self.client.get_collections().collections)

    def aliases(self) -> dict[str, str]:
        """alias -> collection."""
        with self.failures():
            return {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}

    def open(self, name: str, text_field: str | None = None, vector_name: str | None = None) -> "QdrantCollection":
        """text_field, vector_name: of this collection; the config's where they are not given."""
        there, aliases = self.names(), self.aliases()
        if name in there or name in aliases:
            layout = (text_field or self.config.text_field, vector_name or self.config.vector_name)
            return QdrantCollection(self, name, *layout)
        with self.failures():
            counted = [f"{one} ({self.client.count(one).count:,} chunks)" for one in there]
        counted += [f"{alias} (an alias of {of})" for alias, of in sorted(aliases.items())]
        listed = ", ".join(counted) or "no collection"
        raise BadInput(f"--collection {name}: not {self.said}, which has {listed}.{nearest(name, [*there, *aliases])}")

    def create(
        self,
        name: str,
        size: int | None,
        about: dict[str, Any],
        cosine: bool = True,
        text_field: str | None = None,
        vector_name: str | None = None,
    ) -> "QdrantCollection":
        """See data_prep.stores.base.Store. Its text field stands in its metadata, so that nobody has to name it again."""
        from qdrant_client import models

        taken = name in self.names() or name in self.aliases()
        if problem := name_problem(name) or ("is there already" if taken else None):
            raise BadInput(f"--collection {name}: {problem}")
        assert size is not None, "Qdrant takes texts without vectors only in a collection that has none"
        about = {"text_field": text_field or self.config.text_field or TEXT_FIELDS[0], **about}
        vector_name = vector_name or self.config.vector_name
        distance = models.Distance.COSINE if cosine else models.Distance.DOT
        params = models.VectorParams(size=size, distance=distance)
        with self.failures():
            vectors = {vector_name: params} if vector_name else params
            self.client.create_collection(name, vectors_config=vectors, metadata=about)
            kept = self.client.get_collection(name).config.metadata or {}
            if not about.items() <= kept.items():
                self.client.delete_collection(name)
                raise BadInput(
                    f"--url {self.config.url}: keeps no metadata of collections; it needs Qdrant 1.16 or newer"
                )
        return QdrantCollection(self, name, None, vector_name)

    def swap_alias(self, alias: str, name: str) -> None:
        """Points an alias, new or not, to a collection, in one step for whoever queries it meanwhile."""
        from qdrant_client import models

        create = models.CreateAlias(alias_name=alias, collection_name=name)
        steps = [models.CreateAliasOperation(create_alias=create)]
        if alias in self.aliases():
            steps.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        with self.failures():
            self.client.update_collection_aliases(steps)

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> "QdrantStore":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class QdrantCollection:
    """See data_prep.stores.base.Collection. Ids are whole numbers or UUIDs, here as text.

    text_field: the payload field of the text; metadata is the rest of the payload, as it is.
    """

    def __init__(self, store: QdrantStore, name: str, text_field: str | None, vector_name: str | None):
        self.store, self.name = store, name
        with store.failures():
            info = store.client.get_collection(name)
        self.params, self.about = info.config.params, info.config.metadata or {}
        self.indexes = sorted(info.payload_schema)
        self.vector_name = self._vector_name(vector_name)
        self.text_field = self._text_field(text_field or self.about.get("text_field"))

    @property
    def layout(self) -> dict[str, str]:
        named = {"vector_name": self.vector_name} if self.vector_name else {}
        return {"text_field": self.text_field, **named}

    @property
    def not_copied(self) -> list[str]:
        vectors = self.params.vectors
        others = [name for name in vectors if name != self.vector_name] if isinstance(vectors, dict) else []
        others += list(self.params.sparse_vectors or {})
        found = [f"the named vectors {', '.join(sorted(others))}"] if others else []
        return found + ([f"the payload indexes of {', '.join(self.indexes)}"] if self.indexes else [])

    @property
    def size(self) -> int | None:
        vectors = self.params.vectors
        if isinstance(vectors, dict):
            vectors = vectors.get(self.vector_name)
        return vectors.size if vectors and vectors.multivector_config is None else None

    def _vector_name(self, asked: str | None) -> str | None:
        """The asked named vector, or the only one; None for a collection whose vector has no name (or that has none,
        or several to choose from: then reading embeddings is refused)."""
        vectors = self.params.vectors
        names = sorted(vectors) if isinstance(vectors, dict) else []
        if asked is not None and asked not in names:
            listed = f"named vectors: {', '.join(names)}" if names else "one vector without a name"
            raise BadInput(f"--vector-name {asked}: {self.name} has {listed}.{nearest(asked, names)}")
        return asked or (names[0] if len(names) == 1 else None)

    def _text_field(self, asked: str | None) -> str:
        with self.store.failures():
            points, _ = self.store.client.scroll(self.name, limit=LOOKED_AT, with_payload=True)
        kinds: dict[str, set[str]] = {}
        for point in points:
            for key, value in (point.payload or {}).items():
                kinds.setdefault(key, set()).add("text" if isinstance(value, str) else type(value).__name__)
        texts = [key for key, found in kinds.items() if "text" in found]
        listed = ", ".join(f"{key} ({'/'.join(sorted(found))})" for key, found in sorted(kinds.items())) or "none"
        if asked is not None:
            if points and asked not in texts:
                raise BadInput(
                    f"--text-field {asked}: no text stands there in the first {len(points)} points of {self.name}; "
                    f"payload fields: {listed}.{nearest(asked, texts)}"
                )
            return asked
        known = [name for name in TEXT_FIELDS if name in texts]
        if points and len(known) != 1:
            state = f"{' and '.join(known)} may both be it" if known else f"none is called {' or '.join(TEXT_FIELDS)}"
            raise BadInput(f"--text-field: which payload field of {self.name} holds the text? {state}; there: {listed}")
        if known:
            say(f"{self.name}: the text is the payload field {known[0]!r} (--text-field chooses another)")
        return known[0] if known else TEXT_FIELDS[0]

    def count(self, where: dict[str, Any] | None = None) -> int:
        with self._asked(where) as asked:
            return self.store.client.count(self.name, count_filter=asked, exact=True).count

    def chunks(
        self, where: dict[str, Any] | None = None, page: int = PAGE, embeddings: bool = False
    ) -> Iterator[Chunk]:
        vectors = self._vectors_read() if embeddings else False
        mend = f"their payload field {self.text_field!r} is empty; fill it, or leave them out with --where"
        offset = None
        while True:
            if self.store.config.url:
                free_page()
            with self._asked(where) as asked:
                options = {"limit": page, "offset": offset, "with_payload": True, "with_vectors": vectors}
                points, offset = self.store.client.scroll(self.name, scroll_filter=asked, **options)
            yield from with_text(self.name, [self._chunk(point, embeddings) for point in points], mend)
            if offset is None:
                return

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [_point_id(one) for one in ids], with_payload=True)
        return {str(point.id): self._chunk(point, embedding=False) for point in points}

    def _chunk(self, point, embedding: bool) -> Chunk:
        payload = dict(sorted((point.payload or {}).items()))
        text = payload.pop(self.text_field, "")
        vector = self._embedding(point) if embedding else None
        return Chunk(str(point.id), text if isinstance(text, str) else "", payload, vector)

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        from qdrant_client import models

        points = []
        for chunk in chunks:
            if self.text_field in chunk.metadata:
                raise BadInput(f"--collection {self.name}: {chunk.id} has a metadata field {self.text_field!r} as well")
            vector = chunk.embedding.tolist()
            points.append(
                models.PointStruct(
                    id=_point_id(chunk.id),
                    vector={self.vector_name: vector} if self.vector_name else vector,
                    payload={self.text_field: chunk.text, **chunk.metadata},
                )
            )
        with self.store.failures(), _quiet():
            for start in range(0, len(points), PAGE):
                self.store.client.upsert(self.name, points[start : start + PAGE], wait=True)

    def describe(self, about: dict[str, Any]) -> None:
        with self.store.failures():
            self.store.client.update_collection(self.name, metadata=about)
        self.about = {**self.about, **about}

    def query(self, vectors: "np.ndarray", k: int, where: dict[str, Any] | None = None) -> list[list[Chunk]]:
        from qdrant_client import models

        read = self._vectors_read()
        if self.size != vectors.shape[1]:
            raise wrong_size(self.name, self.size, vectors.shape[1])
        found = []
        for start in range(0, len(vectors), QUERIES):
            with self._asked(where) as asked:
                options = {"limit": k, "filter": asked, "using": self.vector_name, "with_payload": True}
                requests = [
                    models.QueryRequest(query=vector.tolist(), with_vector=read, **options)
                    for vector in vectors[start : start + QUERIES]
                ]
                answers = self.store.client.query_batch_points(self.name, requests)
            found += [[self._chunk(point, embedding=True) for point in answer.points] for answer in answers]
        return found

    def _vectors_read(self) -> bool | list[str]:
        """Qdrant's with_vectors for the one vector that is read."""
        vectors = self.params.vectors
        if not vectors or (self.vector_name is None and isinstance(vectors, dict)):
            names = ", ".join(sorted(vectors or {}))
            mend = f"choose one with --vector-name: {names}" if names else "it holds no dense vector"
            raise BadInput(f"--collection {self.name}: has no embedding to read: {mend}")
        if (vectors[self.vector_name] if self.vector_name else vectors).multivector_config is not None:
            raise BadInput(f"--collection {self.name}: its vectors are one per token, not one embedding per text")
        return [self.vector_name] if self.vector_name else True

    def _embedding(self, point) -> "np.ndarray":
        import numpy as np

        vector = point.vector if self.vector_name is None else (point.vector or {}).get(self.vector_name)
        if vector is None:
            raise BadInput(f"--collection {self.name}: the point {point.id} has no such vector; leave it out (--where)")
        return np.asarray(vector, dtype=np.float32)

    @contextmanager
    def _asked(self, where: dict[str, Any] | None) -> Iterator[Any]:
        """The filter as Qdrant's own, in a block whose refusals are the filter's fault where there is one."""
        from qdrant_client.http.exceptions import UnexpectedResponse

        asked = None if where is None else parse_filter(where)
        with self.store.failures():
            try:
                yield asked
            except (UnexpectedResponse, ValueError) as error:
                if where is None or getattr(error, "status_code", 400) not in (400, 422):
                    raise
                reason = self.store.reason(error)
                raise BadInput(f"--where {json.dumps(where)}: Qdrant does not accept it: {reason}") from None

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> "QdrantCollection":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def parse_filter(where: dict[str, Any]):
    """Qdrant's filter of a JSON object: its own form (must, should, must_not, min_should), or {field: value, …} for
    fields that all hold these texts, whole numbers or booleans. Raises BadInput."""
    from pydantic import ValidationError
    from qdrant_client import models

    if not set(where) & _FILTER_KEYS:
        wrong = [key for key, value in where.items() if not isinstance(value, str | int | bool)]
        if wrong:
            raise BadInput(
                f"--where {json.dumps(where)}: {', '.join(wrong)}: the plain form takes a text, a whole number or a "
                'boolean; for more use Qdrant\'s own, such as {"must": [{"key": "year", "range": {"gte": 2020}}]}'
            )
        must = [models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in where.items()]
        return models.Filter(must=must)
    try:
        return models.Filter(**where)
    except ValidationError as error:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))
        keys = ".".join(str(part) for part in deepest["loc"])
        raise BadInput(f"--where {json.dumps(where)}: is no Qdrant filter: {keys}: {deepest['msg']}") from None


def _point_id(chunk_id: str) -> int | str:
    """Qdrant's id of a chunk's. Raises BadInput for what is neither a whole number nor a UUID."""
    if chunk_id.isascii() and chunk_id.isdigit() and str(int(chunk_id)) == chunk_id:
        return int(chunk_id)
    try:
        if str(uuid.UUID(chunk_id)) == chunk_id:
            return chunk_id
    except ValueError:
        pass
    raise BadInput(f"id {chunk_id!r}: Qdrant takes whole numbers and UUIDs (8-4-4-4-12, small letters) only")


def _check_folder(path: Path, create: bool) -> None:
    file = path / "meta.json"
    if not create:
        if not path.is_dir():
            raise BadInput(f"--path {path}: {'is a file' if path.exists() else 'no such folder'}; name a Qdrant folder")
        if not file.is_file():
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise BadInput(f"--path {path}: is no folder of Qdrant's local mode (no meta.json; it holds {inside})")
    if file.is_file():
        try:
            known = "collections" in json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, TypeError):
            known = False
        if not known:
            raise BadInput(f"--path {path}: meta.json is damaged or not Qdrant's")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's advice about keys and sizes, which is said here or in docs/stores.md."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
