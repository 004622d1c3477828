"""The command line of data preparation, one module per command. Each has `add(commands)`; nothing heavy is imported."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.stores.base import CHROMA_PORT, KINDS, StoreConfig


def command(commands, name: str, run: Callable, about: str, example: str) -> argparse.ArgumentParser:
    """A subcommand that calls run(arguments); its help ends in an example that was run."""
    parser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  python -m data_prep {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_positive(parser: argparse.ArgumentParser) -> None:
    about = "which text of a chunk row that has both becomes the positive"
    parser.add_argument("--positive", choices=("answer", "context"), help=about)
