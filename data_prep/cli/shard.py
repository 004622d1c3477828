"""shard: inputs to Arrow shards."""

import argparse
from pathlib import Path

from data_prep.cli import add_positive, command


def add(commands) -> None:
    parser = command(
        commands,
        "shard",
        run,
        "Write inputs as Arrow shards, split by document, without duplicates and leakage.",
        "shard records.jsonl --output shards --num-shards 4 --eval-fraction 0.1 --split-by module",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    about = "Arrow files of the train split (default: about 500 MB each)"
    parser.add_argument("--num-shards", type=int, metavar="N", help=about)
    about = "expected share of documents in the eval split, 0 for none (default 0.1)"
    parser.add_argument("--eval-fraction", type=float, default=0.1, metavar="X", help=about)
    about = "split by this metadata field (default: rows that share a document, positive or query text stay together)"
    parser.add_argument("--split-by", metavar="FIELD", help=about)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the split (default 0)")
    about = "what to do with texts that --split-by leaves in both splits (default refuse)"
    choices = ("refuse", "drop-train", "drop-eval")
    parser.add_argument("--on-leakage", choices=choices, default="refuse", help=about)
    add_positive(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a finished shard folder")


def run(args: argparse.Namespace) -> None:
    from data_prep.shard_writer import shard

    shard(
        args.inputs,
        args.output,
        num_shards=args.num_shards,
        eval_fraction=args.eval_fraction,
        split_by=args.split_by,
        seed=args.seed,
        positive=args.positive,
        on_leakage=args.on_leakage,
        overwrite=args.overwrite,
    )
