"""The flags that limit calls to a server, and say what they cost."""

import argparse
from pathlib import Path

LIMITS = ("concurrency", "timeout", "price_in", "cache")


def add_limits(group: argparse._ArgumentGroup, cache: str) -> None:
    """Adds the flags of LIMITS. cache: name of the folder in the user's cache."""
    group.add_argument("--concurrency", type=int, metavar="N", help="requests in flight at a time (default 8)")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds to wait for one answer (default 120)")
    group.add_argument("--price-in", type=float, metavar="X", help="price of a million input tokens, to show the cost")
    text = f"folder of cached answers: no request is sent twice (default: embedfleet/{cache} in the user's cache)"
    group.add_argument("--cache", type=Path, metavar="DIR", help=text)
