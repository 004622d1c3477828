"""generate: question-answer pairs from the chunks of a store."""

import argparse
from pathlib import Path

from data_prep.cli import add_store, command, store_of, where_of
from data_prep.problems import BadInput


def add(commands) -> None:
    parser = command(
        commands,
        "generate",
        run,
        "Make question-answer pairs from the chunks of a vector store.",
        "generate --offline --store chroma --path chroma --collection docs --output pairs.jsonl --hide name",
    )
    parser.add_argument("--offline", action="store_true", help="without a language model: titles and inverse cloze")
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl")
    about = "remove the value of this metadata field from questions (may be repeated)"
    parser.add_argument("--hide", action="append", default=[], metavar="FIELD", help=about)
    parser.add_argument("--limit", type=int, metavar="N", help="at most N pairs")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawn sentences (default 0)")
    about = "words that an answer needs (default 8)"
    parser.add_argument("--min-words", type=int, default=8, metavar="N", help=about)
    add_store(parser)


def run(args: argparse.Namespace) -> None:
    from data_prep.offline import generate_offline

    if not args.offline:
        raise BadInput("generation with a language model is not built yet; add --offline for pairs without one")
    generate_offline(
        store_of(args),
        args.output,
        where=where_of(args),
        hide=args.hide,
        limit=args.limit,
        seed=args.seed,
        min_words=args.min_words,
    )
