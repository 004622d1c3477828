"""The command line of data preparation, one module per command. Each has `add(commands)`; nothing heavy is imported."""

import argparse
from collections.abc import Callable


def command(commands, name: str, run: Callable, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds a subcommand that calls run(arguments); its help ends in an example, which a test runs."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  python -m data_prep {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_positive(parser: argparse.ArgumentParser) -> None:
    text = "which text of a chunk row that has both becomes the positive"
    parser.add_argument("--positive", choices=("answer", "context"), help=text)
