"""Prepares training data: sources -> pairs -> records -> shards."""

import argparse
import sys
from importlib import import_module

from data_prep.common.console import help_of, say_next
from data_prep.common.errors import guarded, near_flag
from data_prep.common.files import check
from data_prep.common.paths import with_homes

# a module of data_prep.cli each: see its docstring
COMMANDS = ("sample", "generate", "crawl", "logs", "compose", "augment", "mine", "shard", "inspect")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (failed outside the input), 2 (bad input) or 130 (Ctrl-C)."""
    return guarded(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    check([_unknown_flag(text, arguments.command) for text in unknown if text.startswith("-")])
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.run(with_homes(arguments))
    say_next(*arguments.next_step(arguments))


def _unknown_flag(text: str, command: str) -> str:
    """Returns the problem of a flag that the command does not have, and where it belongs."""
    flag = text.partition("=")[0]
    owners = [name for name in COMMANDS if flag in _flags(name)]
    mend = f" It belongs to {', '.join(owners)}." if owners else near_flag(flag, _flags(command))
    return f"{flag}: {command} has no such flag.{mend} All of them: python -m data_prep {command} --help"


def _flags(command: str) -> list[str]:
    parser = argparse.ArgumentParser()
    import_module(f"data_prep.cli.{command}").add_flags(parser)
    return [*parser._option_string_actions]


def _parser() -> argparse.ArgumentParser:
    shortest = "python -m data_prep shard pairs.jsonl --output shards"
    parser = argparse.ArgumentParser(prog="python -m data_prep", **help_of(__doc__, shortest))
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands, in the order of use")
    for name in COMMANDS:
        command = import_module(f"data_prep.cli.{name}")
        summary = " ".join(command.__doc__.split())
        examples = [f"python -m data_prep {example}" for example in command.EXAMPLES]
        subparser = commands.add_parser(name, help=summary, **help_of(summary, *examples))
        subparser.set_defaults(command=name, run=command.run, next_step=command.next_step)
        command.add_flags(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
