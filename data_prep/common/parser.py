"""The parser of every command: its --help, and its answer to a command line that it cannot read."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from data_prep.common.errors import BadInput, nearest, report


def near_flag(word: str, flags: Iterable[str]) -> str:
    """Returns ` Did you mean '--x'?` for the flag that a word misspells, or lacks the dashes of, or an empty string.

    flags: with their dashes. A word without dashes may be a value, so it must come nearer.
    """
    name, names = word.partition("=")[0], {flag.lstrip("-"): flag for flag in flags if flag.startswith("--")}
    close = difflib.get_close_matches(name.lstrip("-"), names, n=1, cutoff=0.6 if name.startswith("-") else 0.8)
    return f" Did you mean {names[close[0]]!r}?" if close else ""


def stray_flags(overrides: Iterable[str], flags: Iterable[str]) -> list[str]:
    """Returns a problem for each word among key=value words that lacks the dashes of a flag."""
    hints = {word: near_flag(word, flags) for word in overrides if "=" not in word}
    return [f"{word}: no key=value.{hint}" for word, hint in hints.items() if hint]


class HelpFormatter(argparse.HelpFormatter):
    """Fills a text to the width of the terminal, and keeps the lines of a text that has several."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Parser of a command and of its subcommands. An error names every problem of the command line, each with the flag
    or command that may be meant, and where all flags stand."""

    _words: Sequence[str] = ()  # of the command line, as far as they may be flags of this command

    def __init__(
        self, prog: str, summary: str, examples: str, formatter_class: type = HelpFormatter, **others: Any
    ) -> None:
        """summary: one sentence. examples: commands, one on a line. others: as for argparse."""
        epilog = "\n  ".join(["example:", *examples.splitlines()])
        super().__init__(prog, description=summary, epilog=epilog, formatter_class=formatter_class, **others)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        self._asked(parsed).check(parsed, unknown)
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(self._kept(args), namespace)

    def parse_known_intermixed_args(self, args=None, namespace=None):
        return super().parse_known_intermixed_args(self._kept(args), namespace)

    def check(self, parsed: argparse.Namespace, unknown: Sequence[str]) -> None:
        """Refuses a command line with words that are unknown, or overrides that lack the dashes of a flag."""
        flags = [word for word in unknown if word.startswith("-")]
        words = takewhile(lambda word: word not in flags, unknown)  # later ones may be values of an unknown flag
        problems = [f"{word}: unrecognized argument.{near_flag(word, self.flags())}" for word in words]
        problems += map(self.about_flag, flags)
        overrides = (word for word in getattr(parsed, "overrides", ()) if word in self._words)
        if problems := problems or stray_flags(overrides, self.flags()):
            self.refuse(problems)

    def error(self, message: str) -> NoReturn:
        """Refuses a command line with a problem that argparse found, and names its unknown flags too."""
        self.refuse([message, *map(self.about_flag, self._unknown_flags())])

    def refuse(self, problems: list[str]) -> NoReturn:
        """Ends the program with every problem of the command line and exit code 2."""
        text, code = report(BadInput(problems))
        self.exit(code, f"{text}\nAll flags: {self.prog} --help\n")

    def flags(self) -> list[str]:
        """Returns the flags of the command, with their dashes."""
        return [*self._option_string_actions]

    def about_flag(self, word: str) -> str:
        """Returns the problem of a flag that the command does not have. word: with its value, if behind `=`."""
        return f"{word.partition('=')[0]}: no such flag.{near_flag(word, self.flags())}"

    def _asked(self, parsed: argparse.Namespace) -> "Parser":
        """Returns the parser of the subcommand that `command` names, or this one where there are none."""
        return self._subparsers._group_actions[0].choices[parsed.command] if self._subparsers else self

    def _kept(self, args: Sequence[str] | None) -> list[str]:
        """Returns the words of the command line, and keeps those before `--`."""
        words = [*(sys.argv[1:] if args is None else args)]
        self._words = [*takewhile(lambda word: word != "--", words)]
        return words

    def _unknown_flags(self) -> list[str]:
        """Returns the words of the command line that look like a flag and are none."""
        words = () if self._subparsers else self._words  # else they are flags of a subcommand
        return [word for word in words if re.match(r"--?[A-Za-z]", word) and not self._has(word.partition("=")[0])]

    def _has(self, flag: str) -> bool:
        return any(known == flag or (self.allow_abbrev and known.startswith(flag)) for known in self.flags())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += f".{nearest(str(value), map(str, action.choices))}"
            raise
