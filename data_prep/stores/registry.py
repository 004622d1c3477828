"""Finds the class of a kind of store: one of this package, or a plug-in of the entry points `embedfleet.stores`.

| --store | is |
| --- | --- |
| chroma, qdrant, pgvector | this package's own |
| another name | the plug-in that an installed package registers under it |
| module:Class | a class that can be imported; for a plug-in that is being written |
"""

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from data_prep.common.errors import BadInput, first_line, nearest

GROUP = "embedfleet.stores"
OWN = {
    "chroma": "data_prep.stores.chroma:ChromaStore",
    "qdrant": "data_prep.stores.qdrant.store:QdrantStore",
    "pgvector": "data_prep.stores.pgvector.store:PgvectorStore",
}


def kinds() -> list[str]:
    """Returns the names that --store takes."""
    return [*OWN, *sorted({point.name for point in entry_points(group=GROUP)} - {*OWN})]


@functools.cache
def load(kind: str) -> Any:
    """Returns what is registered under a name. Raises BadInput: unknown, registered twice, cannot be imported."""
    if kind in OWN:
        return _imported(OWN[kind])
    if ":" in kind:
        return _named(kind, kind)
    points = list(entry_points(group=GROUP, name=kind))
    if not points:
        there = kinds()
        raise BadInput(f"--store {kind}: must be one of {', '.join(there)}, or module:Class.{nearest(kind, there)}")
    if len({point.value for point in points}) > 1:
        raise BadInput(f"--store {kind}: is registered more than once: {', '.join(map(_source, points))}; remove one")
    return _named(kind, points[0].value, f" ({_source(points[0])})")


def _named(kind: str, value: str, source: str = "") -> Any:
    try:
        return _imported(value)
    except Exception as error:  # a plug-in's import may raise anything
        reason = first_line(error)
        raise BadInput(f"--store {kind}{source}: cannot be imported: {reason}") from error


def _imported(value: str) -> Any:
    module, _, name = value.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _source(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value
