"""JSON where Python's own reader and writer differ from it: NaN and infinity, and nesting too deep to be read."""

import json
import math
from typing import Any

NULLS = "their metadata holds NaN or infinity, which JSON lacks; null is written there"  # a note of a writer


def decode_json(text: str | bytes) -> Any:
    """Decodes JSON. Raises ValueError for any text that is none, also for one that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def decode_whole(text: str) -> Any:
    """Decodes JSON as decode_json. Raises ValueError also for half of a surrogate pair: for texts that are written
    or hashed."""
    value = decode_json(text)
    check_whole(value if "\\u" in text else text)
    return value


def check_whole(value: Any) -> None:
    """Raises ValueError for half of a surrogate pair at any depth, which UTF-8 cannot hold; an escape ("\\ud83d") can
    produce one."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair (a cut emoji)") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_finite(value: Any) -> bool:
    """Returns False for NaN, infinity, and a list or object that holds one at any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict | list):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return True


def with_nulls(value: Any) -> Any:
    """Returns the value with null in place of every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: with_nulls(item) for key, item in value.items()}
    return [with_nulls(item) for item in value] if isinstance(value, list) else value
