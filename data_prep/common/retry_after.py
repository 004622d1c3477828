"""The Retry-After header of HTTP (RFC 9110, 10.2.3)."""

import contextlib
import email.utils
import math
import time


def retry_after(value: str) -> float | None:
    """Returns the seconds to wait, from a number or a date; None if the value is neither."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
