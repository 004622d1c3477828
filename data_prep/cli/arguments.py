"""Flags that several commands share."""

import argparse
from typing import Any


def add_positive(parser: argparse.ArgumentParser) -> None:
    text = "which text of a chunk row that has both becomes the positive"
    parser.add_argument("--positive", choices=("answer", "context"), help=text)


def values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns the values of these flags, for a function whose keywords have the same names."""
    return {name: getattr(args, name) for name in names}
