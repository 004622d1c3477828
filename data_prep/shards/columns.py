"""Turns records into Arrow batches with the columns that `datasets` writes.

Buffers are built with numpy: pyarrow.array would import pandas, and takes several times as long.
"""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from data_prep.records import Record
from data_prep.shards.folder import COLUMNS

_METADATA = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


def features() -> dict[str, Any]:
    """Describes the columns as `datasets` does."""

    def feature(kind: str | list[str]) -> dict[str, Any]:
        if isinstance(kind, list):
            return {"feature": feature(kind[0]), "_type": "List"}
        return {"dtype": kind, "_type": "Value"}

    return {name: feature(kind) for name, kind in COLUMNS.items()}


def arrow_schema() -> Any:
    """Returns the Arrow schema, with the metadata from which `datasets` reads the features."""
    import pyarrow as pa

    def arrow(kind: str | list[str]) -> Any:
        return pa.list_(arrow(kind[0])) if isinstance(kind, list) else pa.type_for_alias(kind)

    metadata = json.dumps({"info": {"features": features()}})
    return pa.schema([(name, arrow(kind)) for name, kind in COLUMNS.items()], {"huggingface": metadata})


def to_batch(records: list[Record], schema: Any) -> Any:
    """Returns a pyarrow.RecordBatch with one row per record."""
    import pyarrow as pa

    columns = []
    for name, kind in COLUMNS.items():
        values = [getattr(record, name) for record in records]
        if name == "metadata":
            values = [_METADATA.encode(value) if value else "{}" for value in values]
        if isinstance(kind, list):
            columns.append(_lists(values, _texts if kind[0] == "string" else _numbers))
        else:
            columns.append(_texts(values) if kind == "string" else _numbers(values))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _texts(values: Sequence[str]) -> Any:
    import pyarrow as pa

    data = "".join(values).encode()
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    if sizes.sum() < len(data):  # not all of it is ASCII
        sizes = np.fromiter((len(value.encode()) for value in values), np.int64, len(values))
    return pa.StringArray.from_buffers(len(values), _ends(sizes), pa.py_buffer(data))


def _numbers(values: Sequence[float | None]) -> Any:
    import pyarrow as pa

    present = np.fromiter((value is not None for value in values), bool, len(values))
    data = np.fromiter((0.0 if value is None else value for value in values), np.float64, len(values))
    return pa.Array.from_buffers(pa.float64(), len(values), [_valid(present), pa.py_buffer(data)])


def _lists(values: Sequence[list | None], inner: Any) -> Any:
    import pyarrow as pa

    present = np.fromiter((value is not None for value in values), bool, len(values))
    sizes = np.fromiter((len(value or ()) for value in values), np.int64, len(values))
    items = inner(list(chain.from_iterable(value or () for value in values)))
    buffers = [_valid(present), _ends(sizes)]
    return pa.Array.from_buffers(pa.list_(items.type), len(values), buffers, children=[items])


def _ends(sizes: Any) -> Any:
    """Returns Arrow's offsets, int32: a batch stays far below 2 GiB (see sharding/spool.py)."""
    import pyarrow as pa

    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.py_buffer(offsets)


def _valid(present: Any) -> Any:
    """Returns Arrow's bitmap of non-null values; None if no value is null."""
    import pyarrow as pa

    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
