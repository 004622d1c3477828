"""All settings of a Qdrant collection: as flat names and values, and as what creates another collection like it.

Sizes, distance and the collection's own metadata are not among them: they are the new model's and the caller's.
"""

import json
from typing import Any

from data_prep.stores.base import OWN

DENSE = ""  # Qdrant's name for a vector without a name
VECTOR = f"{OWN}vector"  # which of a collection's vectors reindex's record, in the metadata, is about; "": no name
RECORD = f"{OWN}vector."  # begins the name of the record of a vector that was added later


def about_of(metadata: dict[str, Any], read: str | None) -> dict[str, Any]:
    """Returns the metadata for those who read one of the vectors: without what was recorded of others. None: of all."""
    rest = {key: value for key, value in metadata.items() if not key.startswith(OWN)}
    if (record := metadata.get(f"{RECORD}{read}")) is not None:
        return {**rest, **json.loads(record)}
    if read is not None and metadata.get(VECTOR, read) != read:
        return rest
    return {key: value for key, value in metadata.items() if not key.startswith(RECORD)}


def carried(metadata: dict[str, Any], others: list[str]) -> dict[str, Any]:
    """Returns the metadata of a collection for one like it, whose other vectors go along."""
    records = {f"{RECORD}{name}" for name in others}
    return {key: value for key, value in metadata.items() if key in records or not key.startswith(OWN)}


def settings(info: Any, own: str | None) -> dict[str, Any]:
    """Returns name -> value for all that is set. info: models.CollectionInfo; own: the named vector that is read.

    Such as {"hnsw_config.m": 16, "params.vectors.title.size": 384, "payload_index.user.params.is_tenant": True}.
    """
    config = plain(info.config)
    config.pop("metadata", None)
    vectors = config["params"].get("vectors") or {}
    named = isinstance(info.config.params.vectors, dict)
    for field in ("size", "distance"):  # of the vector that is embedded anew
        (vectors.get(own or DENSE, {}) if named else vectors).pop(field, None)
    indexes = {name: plain(index) for name, index in info.payload_schema.items()}
    for index in indexes.values():
        index.pop("points", None)
    return _flat({**config, "payload_index": indexes})


def settings_of(dense: Any) -> dict[str, Any]:
    """Returns name -> value for the settings of one vector, without what its model decides. dense: or None."""
    one = plain(dense) if dense else {}
    return _flat({name: value for name, value in one.items() if name not in ("size", "distance", "multivector_config")})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value} if name and value != {} else {}
    return {key: one for part, inner in value.items() for key, one in _flat(inner, f"{name}.{part}".strip(".")).items()}


def plain(model: Any) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)


def other_vectors(params: Any, own: str | None) -> list[str]:
    """Returns the names of the other vectors that a collection like this one has too: dense, sparse, one per token.

    Where several are named and none is `own`, the new collection has one without a name in their place.
    """
    return sorted([*_beside(params, own), *(params.sparse_vectors or {})])


def _beside(params: Any, own: str | None) -> dict[str, Any]:
    named = params.vectors if isinstance(params.vectors, dict) else {}
    return {name: one for name, one in named.items() if name != (own or DENSE)} if (own or DENSE) in named else {}


def creation(info: Any, own: str | None, size: int, distance: Any) -> dict[str, Any]:
    """Returns the arguments of QdrantClient.create_collection for a collection with the settings of another one."""
    from qdrant_client import models

    config, params = info.config, info.config.params
    dense = params.vectors.get(own or DENSE) if isinstance(params.vectors, dict) else params.vectors
    dense = dense or models.VectorParams(size=size, distance=distance)
    changes = {"size": size, "distance": distance, "multivector_config": None, "datatype": datatype(dense)}
    vectors = dense.model_copy(update=changes)
    if own or _beside(params, own):
        vectors = {**_beside(params, own), own or DENSE: vectors}
    names = ("replication_factor", "write_consistency_factor", "on_disk_payload", "payload", "id_tracker")
    if params.sharding_method != models.ShardingMethod.CUSTOM:  # of custom shards each point needs its key
        names = ("shard_number", "sharding_method", *names)
    same = {name: value for name in names if (value := getattr(params, name)) is not None}
    diffs = {
        "hnsw_config": (models.HnswConfigDiff, config.hnsw_config),
        "optimizers_config": (models.OptimizersConfigDiff, config.optimizer_config),
        "wal_config": (models.WalConfigDiff, config.wal_config),
        "strict_mode_config": (models.StrictModeConfig, config.strict_mode_config),
    }
    made = {name: model(**plain(value)) for name, (model, value) in diffs.items() if value is not None}
    return {
        "vectors_config": vectors,
        "sparse_vectors_config": params.sparse_vectors,
        "quantization_config": config.quantization_config,
        **same,
        **made,
    }


def datatype(dense: Any) -> Any:
    """Returns the datatype of a vector for one that a model embeds: its own, but no whole numbers."""
    return None if dense.datatype == "uint8" else dense.datatype


def complete(client: Any, name: str, info: Any) -> None:
    """Sets what create_collection does not take: the payload indexes with their parameters, and how reads fan out.

    What is there already stays.
    """
    from qdrant_client import models

    there = client.get_collection(name).payload_schema
    for field, index in sorted(info.payload_schema.items()):
        if field not in there:
            client.create_payload_index(name, field, field_schema=index.params or index.data_type, wait=True)
    params = info.config.params
    names = ("read_fan_out_factor", "read_fan_out_delay_ms")
    fan_out = {one: value for one in names if (value := getattr(params, one)) is not None}
    if fan_out:
        client.update_collection(name, collection_params=models.CollectionParamsDiff(**fan_out))


def values_of(point: Any, names: list[str]) -> dict[str, Any]:
    """Returns a point's vectors of these names, as lists and objects that can be compared."""
    vectors = point.vector if isinstance(point.vector, dict) else {}
    return {name: _values(vectors[name]) for name in names if name in vectors}


def _values(vector: Any) -> Any:
    return vector.model_dump() if hasattr(vector, "model_dump") else vector
