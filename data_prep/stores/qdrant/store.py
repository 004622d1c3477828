"""Qdrant: its local mode in this process, or a server.

- Local mode locks its folder, one client at a time, and holds all of its collections in memory.
- Scrolling is by id, so every page costs the same and no deletion shifts the next.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.common.console import say
from data_prep.common.environment import network_client, proxy_note
from data_prep.common.errors import BadInput, Failed
from data_prep.common.secrets import secret, url_problem
from data_prep.stores.base import HTTPS_PORT, OWN, START, Store, StoreConfig
from data_prep.stores.folders import examine_qdrant
from data_prep.stores.payloads import TEXT_FIELDS
from data_prep.stores.qdrant.added_vector import AddedVector, add, set_like
from data_prep.stores.qdrant.collection import QdrantCollection
from data_prep.stores.qdrant.settings import VECTOR, carried, complete, creation

KEY = "QDRANT_API_KEY"
PORT = 6333
_ANSWER_SECONDS = 60


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
            with self.failures(), self.quiet():
                self.client = QdrantClient(path=str(folder or config.path))
            return
        self.secret = secret(KEY)
        self.location = f"at {config.url}"
        if self.secret and config.url.startswith("http:"):
            say(f"note: --url {config.url} is not https: {KEY} travels unencrypted")
        with self.quiet(), network_client(config.url):
            options = {"api_key": self.secret, "timeout": _ANSWER_SECONDS, "check_compatibility": False}
            self.client = QdrantClient(url=config.url, port=port_of(config.url), **options)
            self.client.http.client.add_middleware(_patient)
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
            raise BadInput(f"{flags}: no Qdrant server answers there ({self.reason(error)}){note}; {START}") from None
        except ValueError:
            raise BadInput(f"{flags}: what answers there is no Qdrant server (its answer is not JSON)") from None

    def errors(self) -> tuple[type[Exception], ...]:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        return ApiException, QdrantException

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

    @staticmethod
    @contextmanager
    def quiet() -> Iterator[None]:
        """Hides the client's warnings about keys and sizes; messages here or docs/how_to/stores.md cover them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def names(self) -> list[str]:
        with self.failures():
            return sorted(one.name for one in self.client.get_collections().collections)

    def aliases(self) -> dict[str, str]:
        with self.failures():
            return {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}

    def open(self, name: str, text_field: str | None = None, vector_name: str | None = None) -> QdrantCollection:
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
        like: QdrantCollection | None = None,
    ) -> QdrantCollection:
        """The collection's metadata names its text field, so that nobody has to give it again."""
        from qdrant_client import models

        self.check_new(name, self.name_problem(name))
        assert size is not None, "Qdrant takes texts without vectors only in a collection that has none"
        layout = like.layout if like else {"text_field": self.config.text_field, "vector_name": self.config.vector_name}
        vector_name = layout.get("vector_name")
        kept = carried(like.info.config.metadata or {}, like.others) if like else {}
        about = {"text_field": layout["text_field"] or TEXT_FIELDS[0], **kept, **about}
        if any(key.startswith(OWN) for key in about):
            about[VECTOR] = vector_name or ""
        distance = models.Distance.COSINE if cosine else models.Distance.DOT
        params = models.VectorParams(size=size, distance=distance)
        options = {"vectors_config": {vector_name: params} if vector_name else params}
        if like:
            options = creation(like.info, vector_name, size, distance)
        with self.failures(), self.quiet():
            self.client.create_collection(name, metadata=about, **options)
            if like:
                complete(self.client, name, like.info)
            kept = self.client.get_collection(name).config.metadata or {}
            if not about.items() <= kept.items():
                self.client.delete_collection(name)
                lacking = "keeps no metadata of collections; it needs Qdrant 1.16 or newer"
                raise BadInput(f"--url {self.config.url}: {lacking}")
        return QdrantCollection(self, name, None, vector_name)

    def add_vector(
        self, source: QdrantCollection, name: str, size: int, about: dict[str, Any], cosine: bool = True
    ) -> AddedVector:
        """Adds a named vector with the settings of the one that `source` reads. One that is there stays as it is."""
        from qdrant_client import models

        collection = self.aliases().get(source.name, source.name)
        vectors = source.params.vectors
        if not isinstance(vectors, dict) or name not in vectors:
            distance = models.Distance.COSINE if cosine else models.Distance.DOT
            add(self, collection, name, size, distance, source.dense)
        added = AddedVector(self, collection, source.text_field, name)
        if not added.recorded and added.count() == 0:
            set_like(self, collection, name, source.dense)
            added.describe(about)
        return AddedVector(self, collection, source.text_field, name)

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


def _patient(request: Any, send: Callable[[Any], Any]) -> Any:
    """Sends a request again after the time that a server's rate limit names."""
    while True:
        answer = send(request)
        wait = answer.headers.get("Retry-After", "")
        if answer.status_code != 429 or not wait.isdigit():
            return answer
        say(f"note: the server's rate limit is reached: waiting for {wait} s")
        _pause(int(wait))


def _pause(seconds: float) -> None:
    time.sleep(seconds)
