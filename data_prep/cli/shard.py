"""Write inputs as Arrow shards, split by document, without duplicates and leakage."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import add_positive, values
from data_prep.common.errors import BadInput

EXAMPLE = "shard records.jsonl --output shards --num-shards 4 --eval-fraction 0.1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    text = "Arrow files of the train split (default: about 500 MB each)"
    parser.add_argument("--num-shards", type=int, metavar="N", help=text)
    text = "expected share of documents in the eval split, 0 for none (default 0.1)"
    parser.add_argument("--eval-fraction", type=float, default=0.1, metavar="X", help=text)
    text = "split by this metadata field (default: rows that share a document, positive or query text stay together)"
    parser.add_argument("--split-by", metavar="FIELD", help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the split (default 0)")
    text = "what to do with texts that --split-by leaves in both splits (default refuse)"
    choices = ("refuse", "drop-train", "drop-eval")
    parser.add_argument("--on-leakage", choices=choices, default="refuse", help=text)
    add_positive(parser)
    text = "leave rows out whose query and positives are both this similar (Jaccard, 0.7 to 1) to an earlier row's"
    parser.add_argument("--near-duplicates", type=float, metavar="X", help=text)
    text = (
        "leave train rows out that hold a text (with --near-duplicates: nearly) of this evaluation set; may be repeated"
    )
    parser.add_argument("--exclude", type=Path, action="append", default=[], metavar="SETDIR", help=text)
    text = "tokenise the train rows with this model folder's or hub id's tokenizer, once for all runs"
    parser.add_argument("--tokenizer", metavar="M", help=text)
    for side in ("query", "passage"):
        text = f"with --tokenizer: before every {side} (default: what the model folder says)"
        parser.add_argument(f"--{side}-prompt", metavar="TEXT", help=text)
        text = f"with --tokenizer: tokens at which a {side} is cut (default: what the model folder says)"
        parser.add_argument(f"--{side}-max-len", type=int, metavar="N", help=text)
    text = "processes that share the work; the bytes written do not depend on it (default: one per core)"
    parser.add_argument("--workers", type=int, metavar="N", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace a finished shard folder")


def run(args: argparse.Namespace) -> None:
    from data_prep.common.workers import cores
    from data_prep.sharding.build import shard

    options = values(
        args, "num_shards", "eval_fraction", "split_by", "seed", "positive", "columns", "on_leakage", "overwrite"
    )
    options |= values(args, "near_duplicates", "exclude")
    workers = cores() if args.workers is None else args.workers
    shard(args.inputs, args.output, tokens=_tokens(args), workers=workers, **options)


def _tokens(args: argparse.Namespace):
    """Returns the options of tokenisation; None without --tokenizer."""
    from data_prep.sharding.tokenise import TokenOptions

    asked = values(args, "query_prompt", "passage_prompt", "query_max_len", "passage_max_len")
    if args.tokenizer is not None:
        return TokenOptions(args.tokenizer, **asked)
    given = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]
    if given:
        mend = "nothing is tokenised without --tokenizer; add it, or leave these to the run"
        raise BadInput(f"{', '.join(given)}: {mend}")
    return None
