"""Records as the columns of an Arrow batch, laid out as `datasets` lays them out. (Not with pyarrow.array: it imports
pandas, and takes several times as long.)"""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

from data_prep.records import Record
from data_prep.shards.folder import COLUMNS

_METADATA = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


def features() -> dict[str, Any]:
    """The columns as `datasets` describes them."""

    def feature(kind: str | list[str]) -> dict[str, Any]:
        if isinstance(kind, list):
            return {"feature": feature(kind[0]), "_type": "List"}
        return {"dtype": kind, "_type": "Value"}

    return {name: feature(kind) for name, kind in COLUMNS.items()}


def arrow_schema() -> Any:
    """The Arrow schema, with the metadata in which `datasets` looks for the features."""
    import pyarrow as pa

    def arrow(kind: str | list[str]) -> Any:
        return pa.list_(arrow(kind[0])) if isinstance(kind, list) else pa.type_for_alias(kind)

    about = json.dumps({"info": {"features": features()}})
    return pa.schema([(name, arrow(kind)) for name, kind in COLUMNS.items()], {"huggingface": about})


def to_batch(records: list[Record], schema: Any) -> Any:
    """A pyarrow.RecordBatch of one row for each record."""
    import pyarrow as pa

    made = []
    for name, kind in COLUMNS.items():
        values = [getattr(record, name) for record in records]
        if name == "metadata":
            values = [_METADATA.encode(value) if value else "{}" for value in values]
        if isinstance(kind, list):
            made.append(_lists(values, _texts if kind[0] == "string" else _numbers))
        else:
            made.append(_texts(values) if kind == "string" else _numbers(values))
    return pa.RecordBatch.from_arrays(made, schema=schema)


def _texts(values: Sequence[str]) -> Any:
    import numpy as np
    import pyarrow as pa

    data = "".join(values).encode()
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    if sizes.sum() < len(data):  # not all of it is ASCII
        sizes = np.fromiter((len(value.encode()) for value in values), np.int64, len(values))
    return pa.StringArray.from_buffers(len(values), _ends(sizes), pa.py_buffer(data))


def _numbers(values: Sequence[float | None]) -> Any:
    import numpy as np
    import pyarrow as pa

    there = np.fromiter((value is not None for value in values), bool, len(values))
    data = np.fromiter((0.0 if value is None else value for value in values), np.float64, len(values))
    return pa.Array.from_buffers(pa.float64(), len(values), [_valid(there), pa.py_buffer(data)])


def _lists(values: Sequence[list | None], inner: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    there = np.fromiter((value is not None for value in values), bool, len(values))
    sizes = np.fromiter((len(value or ()) for value in values), np.int64, len(values))
    items = inner(list(chain.from_iterable(value or () for value in values)))
    buffers = [_valid(there), _ends(sizes)]
    return pa.Array.from_buffers(pa.list_(items.type), len(values), buffers, children=[items])


def _ends(sizes: Any) -> Any:
    """Arrow's offsets. A batch is far below the 2 GiB that they can count (see spool.py)."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.py_buffer(offsets)


def _valid(there: Any) -> Any:
    """Arrow's bitmap of the values that are not null; None where all are there."""
    import numpy as np
    import pyarrow as pa

    return None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
