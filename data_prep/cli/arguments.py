"""Flags that several commands share."""

import argparse
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.remote.location import Location, location

INPUTS = "JSON, JSONL, CSV, TSV or Parquet files (.gz and .zst too), datasets folders, or URLs (docs/reference/data.md)"


def path_or_url(text: str) -> Path | Location:
    """Returns the type of a flag that takes a path or a URL of an object store."""
    if "://" not in text:
        return Path(text)
    try:
        return location(text)
    except BadInput as error:  # argparse would repeat the URL, with what it holds
        raise argparse.ArgumentTypeError(str(error)) from None


def add_positive(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of everything that reads rows."""
    text = "text that becomes the positive where a row has both an answer and a context"
    parser.add_argument("--positive", choices=("answer", "context"), help=text)
    text = "rename keys or columns of the inputs, such as query=sentence1,positive=sentence2"
    parser.add_argument("--columns", type=_columns, metavar="NEW=OLD,...", help=text)


def add_workers(parser: Any, default: str) -> None:
    """Adds the flags of work in parallel. default: of --workers, for the help."""
    text = f"processes that share the work; any number writes the same bytes (default: {default})"
    parser.add_argument("--workers", type=int, metavar="N", help=text)
    text = "share the work with a Ray cluster: ray (RAY_ADDRESS or this machine) or ray://HOST:PORT; docs/how_to/ray.md"
    parser.add_argument("--on", metavar="ray", help=text)


def workers_of(args: argparse.Namespace, default: int) -> dict[str, Any]:
    """Returns `workers` and `on` for a function with these keywords. Raises BadInput."""
    if args.on is not None and args.workers is not None:
        raise BadInput("--workers: counts processes of one machine; leave it out with --on, which takes every core")
    return {"workers": default if args.workers is None else args.workers, "on": args.on}


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
