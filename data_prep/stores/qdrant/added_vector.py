"""A named vector that is added to a collection that exists (Qdrant 1.18 and later).

- The chunks stay as they are; each gets one vector more. Their other vectors and payloads are not touched.
- Who writes a point anew leaves out the new vector, so a chunk that changed is one without it.
- What reindex records of the vector is an entry of the collection's metadata.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.stores.base import PAGE, Chunk
from data_prep.stores.qdrant.collection import QdrantCollection, point_id
from data_prep.stores.qdrant.settings import RECORD, datatype, plain

if TYPE_CHECKING:
    from data_prep.stores.qdrant.store import QdrantStore

_MEND = "make a new collection with --target NEW instead"


class AddedVector(QdrantCollection):
    """The chunks that have the vector. Writing a chunk gives it the vector, and changes nothing else."""

    whole = False
    vector_name: str

    @property
    def recorded(self) -> bool:
        """Returns True if reindex recorded whose vectors these are."""
        return f"{RECORD}{self.vector_name}" in (self.info.config.metadata or {})

    @contextmanager
    def filtered(self, where: dict[str, Any] | None) -> Iterator[Any]:
        from qdrant_client import models

        with super().filtered(where) as native:
            have = models.HasVectorCondition(has_vector=self.vector_name)
            yield models.Filter(must=[have] if native is None else [have, native])

    def stored(self, ids: Sequence[str]) -> dict[str, Chunk]:
        asked = {"with_payload": True, "with_vectors": [self.vector_name]}
        with self.store.failures():
            points = self.store.client.retrieve(self.name, [point_id(one) for one in ids], **asked)
        have = [point for point in points if isinstance(point.vector, dict) and self.vector_name in point.vector]
        return {str(point.id): self._chunk(point, embedding=False) for point in have}

    def rest(self, ids: Sequence[str]) -> dict[str, Any]:
        return {}

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        """Writes the vectors. A chunk whose text is another one by now gets none, one that was deleted neither."""
        from qdrant_client import models
        from qdrant_client.http.exceptions import UnexpectedResponse

        page = self.most("upsert_max_batchsize", PAGE)
        for start in range(0, len(chunks), page):
            part = chunks[start : start + page]
            points = [
                models.PointVectors(id=point_id(one.id), vector={self.vector_name: one.embedding.tolist()})
                for one in part
            ]
            with self.store.failures():
                try:
                    self.store.client.update_vectors(self.name, points, wait=True)
                except (UnexpectedResponse, KeyError) as error:  # KeyError: local mode
                    if getattr(error, "status_code", 404) != 404:  # a point was deleted; the others are written
                        raise
            there = self.stored([one.id for one in part])
            # one that was written anew before it got the vector has that of its old text
            self.remove([one.id for one in part if one.id in there and there[one.id].text != one.text])

    def remove(self, ids: Sequence[str]) -> None:
        """Takes the vector from these chunks."""
        with self.store.failures():
            for start in range(0, len(ids), PAGE):
                part = [point_id(one) for one in ids[start : start + PAGE]]
                self.store.client.delete_vectors(self.name, [self.vector_name], part, wait=True)

    def describe(self, about: dict[str, Any]) -> None:
        metadata = self.info.config.metadata or {}
        name = f"{RECORD}{self.vector_name}"
        record = {**json.loads(metadata.get(name, "{}")), **about}
        with self.store.failures():
            self.store.client.update_collection(self.name, metadata={name: json.dumps(record)})
            self.info = self.store.client.get_collection(self.name)
        self.about = {**self.about, **about}


def add(store: "QdrantStore", collection: str, name: str, size: int, distance: Any, like: Any) -> None:
    """Adds a vector. like: the models.VectorParams whose datatype it takes, or None.

    Raises BadInput where the server or the client cannot add one, or refuses the name.
    """
    from qdrant_client import models
    from qdrant_client.http.exceptions import UnexpectedResponse

    flag = f"--into-vector {name}"
    if not hasattr(models, "DenseVectorNameConfig"):
        raise BadInput(f"{flag}: this needs qdrant-client 1.18 or newer: pip install -U qdrant-client; or {_MEND}")
    dense = models.DenseVectorConfig(size=size, distance=distance, datatype=like and datatype(like))
    with store.failures():
        try:
            store.client.create_vector_name(collection, name, models.DenseVectorNameConfig(dense=dense))
        except UnexpectedResponse as error:
            if error.status_code in (404, 405):  # a server that does not know the request
                version = store.client.info().version
                raise BadInput(
                    f"{flag}: adding a vector to a collection needs Qdrant 1.18 or newer, {store.location} is "
                    f"{version}; {_MEND}"
                ) from None
            if error.status_code not in (400, 409, 422):
                raise
            raise BadInput(f"{flag}: Qdrant refuses it: {store.reason(error)}") from None
        except ValueError as error:
            raise BadInput(f"{flag}: Qdrant refuses it: {store.reason(error)}") from None


def set_like(store: "QdrantStore", collection: str, name: str, like: Any) -> None:
    """Gives a vector the settings of another one that are set after it was made. like: or None."""
    from qdrant_client import models

    names = ("hnsw_config", "quantization_config", "on_disk", "memory")
    diff = {name: value for name, value in plain(like).items() if name in names} if like else {}
    if diff:
        with store.failures():
            store.client.update_collection(collection, vectors_config={name: models.VectorParamsDiff(**diff)})
