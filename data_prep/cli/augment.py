"""Adds variants of each row's query: typos, synonyms, case, punctuation, transliteration."""

import argparse
from pathlib import Path

from data_prep.cli.arguments import INPUTS, add_positive, add_workers, path_or_url, shard_next, values, workers_of
from data_prep.common.errors import BadInput

EXAMPLES = ("augment records.jsonl --output augmented.jsonl --variants 2 --typo-rate 0.3 --case-rate 0.1",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=path_or_url, metavar="INPUT", help=INPUTS)
    parser.add_argument("--output", type=Path, required=True, metavar="F.jsonl", help="file of records to write")
    parser.add_argument("--variants", type=int, default=1, metavar="N", help="most variants of each row (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all draws (default 0)")
    add_positive(parser)
    add_workers(parser, "1")
    _add_changes(parser.add_argument_group("changes"))


def _add_changes(group) -> None:
    help_text = "share of the words that get a typo (default 0.2)"
    group.add_argument("--typo-rate", type=float, default=0.2, metavar="R", help=help_text)
    help_text = (
        "kinds of typos, with weights if they differ, such as swap=2,drop "
        "(default: neighbour,drop,double,swap,split,join)"
    )
    group.add_argument("--typos", metavar="KINDS", help=help_text)
    help_text = "your own misspellings, one a line: misspelling TAB correction; other words get --typos"
    group.add_argument("--misspellings", type=Path, metavar="F.tsv", help=help_text)
    help_text = "texts that mean the same, as in Solr: a, b, c or a => b"
    group.add_argument("--synonyms", type=Path, metavar="F.txt", help=help_text)
    help_text = "share of the listed texts in a query that are replaced (default 0.3)"
    group.add_argument("--synonym-rate", type=float, default=0.3, metavar="R", help=help_text)
    for name, what in (
        ("case", "written in small letters, in capitals, or with a first capital"),
        ("punctuation", "with punctuation left out, or a mark added"),
        ("transliteration", "with Russian words in Latin letters, or Latin words in Russian ones"),
    ):
        help_text = f"share of the variants {what} (default 0)"
        group.add_argument(f"--{name}-rate", type=float, default=0.0, metavar="R", help=help_text)
    help_text = "a variant's score is its parent's times this (default 1)"
    group.add_argument("--score-scale", type=float, default=1.0, metavar="X", help=help_text)


def run(args: argparse.Namespace) -> None:
    from data_prep.augmentation.augment import augment
    from data_prep.augmentation.rewriting import Changes

    rates = values(args, "typo_rate", "synonym_rate", "case_rate", "punctuation_rate", "transliteration_rate")
    kinds = {} if args.typos is None else {"typo_kinds": _kinds(args.typos)}
    options = values(args, "variants", "misspellings", "synonyms", "score_scale", "seed", "positive", "columns")
    augment(args.inputs, args.output, changes=Changes(**rates, **kinds), **options, **workers_of(args, 1))


def _kinds(text: str) -> dict[str, float]:
    """Returns kind -> weight, from text such as `swap=2,drop`."""
    kinds = {}
    for part in text.split(","):
        name, equals, weight = part.partition("=")
        try:
            kinds[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            raise BadInput(f"--typos {part}: {weight!r} is no number; write kinds such as swap=2,drop") from None
    return kinds


def next_step(args: argparse.Namespace) -> list:
    return shard_next(args.output)
