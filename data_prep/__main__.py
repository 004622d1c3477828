"""Prepares training data: sources -> pairs -> records -> shards."""

import argparse
import sys
from importlib import import_module

from data_prep.common.console import say_next
from data_prep.common.errors import guarded
from data_prep.common.parser import Parser
from data_prep.common.paths import with_homes

# a module of data_prep.cli each: see its docstring
COMMANDS = ("sample", "generate", "crawl", "logs", "compose", "augment", "mine", "shard", "inspect")


class _Parser(Parser):
    """Parser that knows the commands to which a flag belongs."""

    def about_flag(self, word: str) -> str:
        flag = word.partition("=")[0]
        owners = [name for name in COMMANDS if flag in _flags(name)]
        return f"{flag}: no such flag. It belongs to {', '.join(owners)}." if owners else super().about_flag(word)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (failed outside the input), 2 (bad input) or 130 (Ctrl-C)."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.run(with_homes(arguments))
    if words := arguments.next_step(arguments):
        say_next(*words)


def _flags(command: str) -> list[str]:
    parser = argparse.ArgumentParser()
    import_module(f"data_prep.cli.{command}").add_flags(parser)
    return [*parser._option_string_actions]


def _parser() -> Parser:
    parser = _Parser("python -m data_prep", __doc__, "python -m data_prep shard pairs.jsonl --output shards")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands, in the order of use")
    for name in COMMANDS:
        command = import_module(f"data_prep.cli.{name}")
        summary = " ".join(command.__doc__.split())
        examples = "\n".join(f"python -m data_prep {example}" for example in command.EXAMPLES)
        subparser = commands.add_parser(name, help=summary, summary=summary, examples=examples)
        subparser.set_defaults(command=name, run=command.run, next_step=command.next_step)
        command.add_flags(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
