"""Turns inputs of any accepted format into one JSONL of records."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import INPUTS, add_positive, path_or_url, shard_next, values
from data_prep.common.errors import BadInput

EXAMPLES = ("compose pairs.jsonl glossary.csv --output records.jsonl --hard-k 2 --skip-bad",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", type=path_or_url, metavar="INPUT", help=INPUTS)
    help_text = "the same as INPUT"
    parser.add_argument(
        "--input", nargs="+", action="extend", default=[], type=path_or_url, metavar="INPUT", help=help_text
    )
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl", help="file of records to write")
    help_text = "add K hard negatives per row by BM25 from the same input (default 0)"
    parser.add_argument("--hard-k", type=int, default=0, metavar="K", help=help_text)
    help_text = "draw equally many rows of each value of this metadata field (after --hard-k)"
    parser.add_argument("--balance", metavar="FIELD", help=help_text)
    help_text = "with --balance: at most N rows of each value (default: as many as the rarest value has)"
    parser.add_argument("--per-value", type=int, metavar="N", help=help_text)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draw for --balance (default 0)")
    add_positive(parser)
    help_text = "write bad rows with their reasons to F.rejected.jsonl (default: stop at them)"
    parser.add_argument("--skip-bad", action="store_true", help=help_text)


def run(args: argparse.Namespace) -> None:
    from data_prep.composing.compose import compose

    inputs = args.inputs + args.input
    if not inputs:
        raise BadInput("compose: no input; name files or folders: compose a.jsonl b.csv --output all.jsonl")
    options = values(args, "hard_k", "positive", "columns", "skip_bad", "balance", "per_value", "seed")
    compose(inputs, args.output, **options)


def next_step(args: argparse.Namespace) -> list:
    return shard_next(args.output)
