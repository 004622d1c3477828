"""NaN and infinity, which Python writes into JSON although JSON has no such numbers."""

import math
from typing import Any

NULLS = "their metadata holds NaN or infinity, which JSON lacks; null is written there"  # a note of a writer


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
