"""Command line of data preparation: sources -> records -> shards."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_prep.problems import BadInput, guarded

STEPS = "sample (or your own store) -> generate -> compose -> shard -> python -m trainer; inspect looks at each of them"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (failed outside the input), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = _parser().parse_args(argv)
    return guarded(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=f"{__doc__} {STEPS}.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_compose, _add_shard, _add_inspect, _add_generate, _add_sample):
        add(commands)
    return parser


def _command(commands, name: str, run, about: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  python -m data_prep {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_positive(parser: argparse.ArgumentParser) -> None:
    about = "which text of a chunk row that has both becomes the positive"
    parser.add_argument("--positive", choices=("answer", "context"), help=about)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", type=Path, required=True, metavar="DIR", help="folder of the embedded Chroma store")
    parser.add_argument("--collection", required=True, metavar="NAME")


def _add_compose(commands) -> None:
    parser = _command(
        commands,
        "compose",
        _compose,
        "Turn inputs of any accepted format into one JSONL of records.",
        "compose pairs.jsonl glossary.csv --output records.jsonl --hard-k 2 --skip-bad",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl")
    about = "add K hard negatives per row by BM25 from the same input (default 0)"
    parser.add_argument("--hard-k", type=int, default=0, metavar="K", help=about)
    _add_positive(parser)
    about = "put bad rows into F.rejected.jsonl with their reasons instead of stopping"
    parser.add_argument("--skip-bad", action="store_true", help=about)


def _compose(args: argparse.Namespace) -> None:
    from data_prep.compose import compose

    compose(args.inputs, args.output, hard_k=args.hard_k, positive=args.positive, skip_bad=args.skip_bad)


def _add_shard(commands) -> None:
    parser = _command(
        commands,
        "shard",
        _shard,
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
    _add_positive(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a finished shard folder")


def _shard(args: argparse.Namespace) -> None:
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


def _add_inspect(commands) -> None:
    about = "Show what is in an input or shard folder: counts, lengths, duplicates, problems."
    parser = _command(commands, "inspect", _inspect, about, "inspect shards --json")
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--json", action="store_true", help="only JSON on stdout")
    _add_positive(parser)


def _inspect(args: argparse.Namespace) -> None:
    from data_prep.inspect import inspect

    inspect(args.path, as_json=args.json, positive=args.positive)


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "Make question-answer pairs from the chunks of a vector store.",
        "generate --offline --store chroma --path chroma --collection docs --output pairs.jsonl --hide name",
    )
    parser.add_argument("--offline", action="store_true", help="without a language model: titles and inverse cloze")
    parser.add_argument("--store", choices=("chroma",), default="chroma")
    _add_store(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument("--where", metavar="JSON", help='Chroma metadata filter, such as \'{"kind": "function"}\'')
    about = "remove the value of this metadata field from questions (may be repeated)"
    parser.add_argument("--hide", action="append", default=[], metavar="FIELD", help=about)
    parser.add_argument("--limit", type=int, metavar="N", help="at most N pairs")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawn sentences (default 0)")
    about = "words that an answer needs (default 8)"
    parser.add_argument("--min-words", type=int, default=8, metavar="N", help=about)


def _generate(args: argparse.Namespace) -> None:
    from data_prep.offline import generate_offline

    if not args.offline:
        raise BadInput("generation with a language model is not built yet; add --offline for pairs without one")
    generate_offline(
        args.path,
        args.collection,
        args.output,
        where=_where(args.where),
        hide=args.hide,
        limit=args.limit,
        seed=args.seed,
        min_words=args.min_words,
    )


def _where(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(f"--where {text}: is not JSON: {error}") from None
    if not isinstance(value, dict) or not value:
        raise BadInput(f'--where {text}: must be a JSON object such as {{"kind": "function"}}')
    return value


def _add_sample(commands) -> None:
    parser = _command(
        commands,
        "sample",
        _sample,
        "Fill an embedded Chroma collection with the docstrings of the installed standard library.",
        "sample --path chroma --collection stdlib",
    )
    _add_store(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N docstrings")


def _sample(args: argparse.Namespace) -> None:
    from data_prep.sample import sample

    sample(args.path, args.collection, limit=args.limit)


if __name__ == "__main__":
    sys.exit(main())
