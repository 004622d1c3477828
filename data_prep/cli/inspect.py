"""inspect: what is in an input or shard folder."""

import argparse
from pathlib import Path

from data_prep.cli import add_positive, command


def add(commands) -> None:
    about = "Show what is in an input or shard folder: counts, lengths, duplicates, problems."
    parser = command(commands, "inspect", run, about, "inspect shards --json")
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--json", action="store_true", help="only JSON on stdout")
    add_positive(parser)


def run(args: argparse.Namespace) -> None:
    from data_prep.inspect import inspect

    inspect(args.path, as_json=args.json, positive=args.positive)
