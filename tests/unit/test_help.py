"""Every --help: one sentence, a text for each option, groups where there are many, an example on a line of its own."""

import argparse
import importlib
import re

import pytest

from tests.unit.test_documents import HELP

MOST_OPTIONS = 12  # without a group of their own


class Built(BaseException):
    """Carries the parser out of a command before it does anything."""


@pytest.fixture
def parser_of(monkeypatch):
    def stop(parser, *_, **__):
        raise Built(parser)

    for name in ("parse_args", "parse_known_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)

    def parser(module: str, command: str | None = None) -> argparse.ArgumentParser:
        with pytest.raises(Built) as built:
            importlib.import_module(module if "." in module else f"{module}.__main__").main([])
        (whole,) = built.value.args
        if command is None:
            return whole
        (commands,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
        return commands.choices[command]

    return parser


@pytest.mark.parametrize("command", [*HELP, ["data_prep"], ["launch"]], ids=" ".join)
def test_help_is_one_sentence_with_explained_options_in_groups(command, parser_of):
    parser = parser_of(*command)
    summary = parser.description
    assert re.fullmatch(r"[A-Z][a-z-]+s\b.*\.", summary), f"{summary!r}: a verb in the third person, then a full stop"
    assert ". " not in summary and len(summary.split()) < 25, f"{summary!r}: one sentence of fewer than 25 words"
    silent = [action.metavar or action.dest for action in parser._actions if not action.help and not action.choices]
    assert not silent, f"no help: {silent}"
    plain = [action for group in parser._action_groups[:2] for action in group._group_actions]
    assert len(plain) <= MOST_OPTIONS, f"{len(plain)} options without a group"
    shown = parser.format_help().split("\nexample:\n")
    assert len(shown) == 2, "no example"
    lines = shown[1].strip("\n").splitlines()
    assert lines and all(re.match(r"  (python|torchrun) .*-m " + re.escape(command[0]), line) for line in lines), lines
