"""Turns search logs (columns query, item, position, count, perhaps impressions) into scored records."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import path_or_url, shard_next

EXAMPLES = ("logs clicks.csv --output scored.jsonl --items products.csv",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=path_or_url, metavar="LOG", help="CSV file with these columns")
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl", help="file of records to write")
    help_text = "catalogue with columns id, text, perhaps title, for logs that name items by id"
    parser.add_argument("--items", type=path_or_url, metavar="FILE", help=help_text)
    help_text = "pairs (default): a score for each query and item; lists: positives, and negatives without a click"
    parser.add_argument("--rows", choices=("pairs", "lists"), default="pairs", help=help_text)
    help_text = "how fast attention falls with the position, as position^-X; 0: no correction (default 1)"
    parser.add_argument("--eta", type=float, default=1.0, metavar="X", help=help_text)
    help_text = "leave out queries with fewer clicks (default 2)"
    parser.add_argument("--min-clicks", type=int, default=2, metavar="N", help=help_text)
    help_text = "with impressions: leave out items with fewer expected looks (default 3)"
    parser.add_argument("--min-examined", type=float, default=3.0, metavar="X", help=help_text)
    help_text = "least score of a positive in lists (default 0.5)"
    parser.add_argument("--positive-score", type=float, default=0.5, metavar="X", help=help_text)


def run(args: argparse.Namespace) -> None:
    from data_prep.composing.search_logs import Rule, logs

    rule = Rule(args.eta, args.min_clicks, args.min_examined, args.positive_score)
    logs(args.inputs, args.output, rule=rule, rows=args.rows, items=args.items)


def next_step(args: argparse.Namespace) -> list:
    return shard_next(args.output, *(["--eval-fraction", "0"] if args.rows == "pairs" else []))
