"""Fills an embedded Chroma collection with the docstrings of the installed standard library."""

import argparse
from pathlib import Path

EXAMPLES = ("sample --path chroma --collection stdlib",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", type=Path, required=True, metavar="DIR", help="folder of the embedded Chroma store")
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection name, 3 characters or more")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N docstrings")


def run(args: argparse.Namespace) -> None:
    from data_prep.composing.stdlib_sample import sample

    sample(args.path, args.collection, limit=args.limit)


def next_step(args: argparse.Namespace) -> list:
    source = ["--path", args.path, "--collection", args.collection]
    return ["python", "-m", "data_prep", "generate", "--offline", *source, "--output", "pairs.jsonl"]
