"""Flags that several commands share."""

import argparse
from pathlib import Path
from typing import Any

INPUTS = "JSON, JSONL, CSV, TSV or Parquet files, or datasets folders (docs/data.md)"


def add_positive(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of everything that reads rows."""
    text = "which text of a chunk row that has both becomes the positive"
    parser.add_argument("--positive", choices=("answer", "context"), help=text)
    text = "names for keys or columns of the inputs, such as query=sentence1,positive=sentence2"
    parser.add_argument("--columns", type=_columns, metavar="NEW=OLD,...", help=text)


def _columns(text: str) -> dict[str, str]:
    """Returns {old name: new name} of text such as query=sentence1,positive=sentence2."""
    names: dict[str, str] = {}
    for part in text.split(","):
        new, equals, old = (side.strip() for side in part.partition("="))
        if not (new and equals and old):
            raise argparse.ArgumentTypeError(f"{part!r} must be NEW=OLD, such as query=sentence1")
        if old in names or new in names.values():
            raise argparse.ArgumentTypeError(f"{old if old in names else new!r} is named twice")
        names[old] = new
    return names


def values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns the values of these flags, for a function whose keywords have the same names."""
    return {name: getattr(args, name) for name in names}


def shard_next(path: Path, *flags: str) -> list:
    """Returns the command that shards a file of rows."""
    return ["python", "-m", "data_prep", "shard", path, "--output", "shards", *flags]


def train_next(shards: Path) -> list:
    """Returns the command that writes a run file for shards."""
    return ["python", "-m", "launch", "init", "--model", "MODEL", "--data", shards]
