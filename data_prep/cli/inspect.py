"""Shows what is in an input or shard folder: counts, lengths, languages, duplicates, leakage, problems."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import add_positive, add_workers, path_or_url, shard_next, train_next, values, workers_of

EXAMPLES = ("inspect shards --tokenizer MODEL_FOLDER --html report.html",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=path_or_url, metavar="PATH", help="file of an accepted format, or shard folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="F.html", help="write a page with plots as well")
    text = "model folder or hub id, for lengths in tokens, truncated texts, and texts that contain its prompts"
    parser.add_argument("--tokenizer", metavar="M", help=text)
    text = "evaluation set or shard folder whose queries and relevant documents must not occur here; may be repeated"
    parser.add_argument("--exclude", type=Path, action="append", metavar="SETDIR", help=text)
    add_positive(parser)
    add_workers(parser, "1")


def run(args: argparse.Namespace) -> None:
    from data_prep.quality.inspect import inspect

    flags = values(args, "html", "positive", "columns", "tokenizer", "exclude")
    inspect(args.path, as_json=args.json, **flags, **workers_of(args, 1))


def next_step(args: argparse.Namespace) -> list:
    return train_next(args.path) if (args.path / "manifest.json").is_file() else shard_next(args.path)
