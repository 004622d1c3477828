"""The text within a Qdrant payload: recognised layouts, and paths such as meta.body.

| written by | text | other fields |
| --- | --- | --- |
| LlamaIndex | `_node_content.text`, or `_node_content.text_resource.text` | its own, beside |
| LangChain | `page_content` | `metadata` |
| Haystack | `content` | `meta`, `id` and others |
| fastembed, plain payloads | `document`, `text`, `content` | beside |
| Spring AI, LangChain4j | `doc_content`, `text_segment` | beside |

- A path leads through objects, and through texts that are a JSON object: LlamaIndex's `_node_content` is one.
- A key that has a dot of its own is quoted in a path, as in Qdrant's filters: "meta.body".
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from data_prep.common.errors import BadInput, nearest

Path = tuple[str, ...]
Payloads = list[dict[str, Any]]

NODE = "_node_content"
LLAMA_INDEX = ((NODE, "text"), (NODE, "text_resource", "text"))
TEXT_FIELDS = ("text", "page_content", "document", "content")  # taken if exactly one of them is there
RARE_FIELDS = ("doc_content", "text_segment")  # taken if none of those is there
SHOWN, DEPTH = 25, 4  # fields that an error lists, and how deep they lie at most
_KEY = re.compile(r'"([^"]+)"|([^.]+)')


def path_of(name: str) -> Path:
    """Returns the keys of a path: a.b."c.d" -> ("a", "b", "c.d")."""
    return tuple(quoted or plain for quoted, plain in _KEY.findall(name)) or (name,)


def name_of(path: Path) -> str:
    """Returns the text form of a path, the inverse of path_of."""
    return ".".join(f'"{key}"' if "." in key else key for key in path)


def value_at(payload: Any, path: Path) -> Any:
    """Returns the value at a path, or None."""
    return take(payload, path)[0]


def take(payload: Any, path: Path) -> tuple[Any, Any]:
    """Returns the value at a path, or None, and the payload without it. A text of JSON stays a text of JSON."""
    inside = _object(payload)
    if inside is None or path[0] not in inside:
        return None, payload
    rest = dict(inside)
    if len(path) == 1:
        value = rest.pop(path[0])
    else:
        value, rest[path[0]] = take(inside[path[0]], path[1:])
    return value, json.dumps(rest) if isinstance(payload, str) else rest


def put(payload: Any, path: Path, value: Any) -> Any:
    """Returns the payload with the value at a path: the inverse of `take`."""
    whole = dict(_object(payload) or {})
    whole[path[0]] = value if len(path) == 1 else put(whole.get(path[0]), path[1:], value)
    return json.dumps(whole) if isinstance(payload, str) else whole


def _object(value: Any) -> dict[str, Any] | None:
    """Returns a payload's object, also one that is written as JSON in a text."""
    if not isinstance(value, str):
        return value if isinstance(value, dict) else None
    if not value.lstrip().startswith("{"):
        return None
    try:
        whole = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return whole if isinstance(whole, dict) else None


def text_path(payloads: Payloads, asked: str | None, collection: str) -> tuple[Path, str | None]:
    """Returns the path of the text, and a note about it. payloads: some of the collection's.

    asked: the field or path that the user or the collection names. BadInput, listing the fields, if no text is there or
    if no layout is recognised.
    """
    if asked is not None:
        path = (asked,) if _count(payloads, (asked,)) else path_of(asked)
        if payloads and not _count(payloads, path):
            hint = nearest(asked, [name for name, kinds in _fields(payloads).items() if "text" in kinds])
            raise BadInput(
                f"--text-field {asked}: no text stands there in the first {len(payloads)} points of {collection}; "
                f"payload fields: {_listed(payloads)}.{hint}"
            )
        if path == (NODE,) and (inner := _llama_index(payloads)):
            return inner, f"{collection}: {NODE} is JSON: the text is read from {name_of(inner)}"
        return path, None
    paths = _recognised(payloads)
    if not payloads:
        return (TEXT_FIELDS[0],), None
    if len(paths) != 1:
        names = " and ".join(map(name_of, paths))
        state = f"{names} may both be it" if paths else f"none is called {' or '.join(TEXT_FIELDS)}"
        mend = f"there: {_listed(payloads)} (a path such as meta.body names a field within another)"
        raise BadInput(f"--text-field: which payload field of {collection} holds the text? {state}; {mend}")
    name = name_of(paths[0])
    return paths[0], f"{collection}: the text is the payload field {name!r} (--text-field chooses another)"


def json_texts(payloads: Payloads, path: Path) -> int:
    """Returns how many of the texts at a path are JSON objects."""
    return sum(_object(value_at(payload, path)) is not None for payload in payloads)


def _recognised(payloads: Payloads) -> list[Path]:
    """Returns the paths that may hold the text: one if the layout is clear."""
    if node := _llama_index(payloads):
        return [node]
    known = [(name,) for name in TEXT_FIELDS if _count(payloads, (name,))]
    return known or [(name,) for name in RARE_FIELDS if _count(payloads, (name,))]


def _llama_index(payloads: Payloads) -> Path | None:
    counts = {path: _count(payloads, path, filled=True) for path in LLAMA_INDEX}
    best = max(LLAMA_INDEX, key=counts.__getitem__)
    return best if counts[best] else None


def _count(payloads: Payloads, path: Path, filled: bool = False) -> int:
    """Returns how many payloads hold a text at the path. filled: that is not empty."""
    texts = [value for payload in payloads if isinstance(value := value_at(payload, path), str)]
    return sum(bool(text.strip()) or not filled for text in texts)


def _fields(payloads: Payloads) -> dict[str, set[str]]:
    """Returns the fields by path, with the types of their values."""
    kinds: dict[str, set[str]] = {}
    for payload in payloads:
        for path, value in _leaves(payload):
            kind = "text" if isinstance(value, str) else type(value).__name__
            kinds.setdefault(name_of(path), set()).add(kind)
    return kinds


def _leaves(value: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, item in value.items():
        path, inside = (*above, str(key)), _object(item)
        if inside and len(path) < DEPTH:
            yield from _leaves(inside, path)
        if not inside or isinstance(item, str):
            yield path, item


def _listed(payloads: Payloads) -> str:
    fields = sorted(_fields(payloads).items())
    listed = ", ".join(f"{name} ({'/'.join(sorted(kinds))})" for name, kinds in fields[:SHOWN])
    return (listed or "none") + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")
