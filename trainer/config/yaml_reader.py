"""Reads a run file and its overrides: nested values, and the line of each key. No torch."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import BadInput, nearest
from data_prep.common.finite import check_whole

SUFFIXES = (".yaml", ".yml", ".json")  # of run files
INIT = "write one with: python -m launch init --model MODEL --data SHARDS"


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a float (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen: dict[Any, int] = {}
        self.flatten_mapping(node)  # merge keys (<<)
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                raise yaml.YAMLError(f"line {line}: key {key!r} stands here and on line {seen[key]}; keep one")
            seen[key] = line
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Reads YAML. Raises yaml.YAMLError, also for a value that is none of its tag (`!!float x`) or holds itself."""
    try:
        value = yaml.load(text, Loader=Loader)  # a SafeLoader
        json.dumps(value, default=str, skipkeys=True)  # refuses a circle
        check_whole(value)  # and what no message could show
        return value
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise yaml.YAMLError(f"a value that does not fit ({error})") from None
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


def lines_of(node: yaml.Node | None, prefix: tuple = ()) -> dict[tuple, int | str]:
    """Returns key path -> line of the run file, for messages."""
    lines: dict[tuple, int | str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value)
            lines[path] = key.start_mark.line + 1
            lines |= lines_of(value, path)
    return lines


def read_values(path: Path, known: Iterable[str]) -> tuple[dict, dict[tuple, int | str]]:
    """Returns the nested values of a run file and the line of each key. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = [file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES]
        raise BadInput(f"{path}: no such run file.{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    lines: dict[tuple, int | str] = {}
    try:
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_unique)
            check_whole(values)
            with suppress(yaml.YAMLError, RecursionError):  # most JSON is YAML: good enough to find lines
                lines = lines_of(yaml.compose(text, Loader=Loader))
        else:
            values = read_yaml(text)
            lines = lines_of(yaml.compose(text, Loader=Loader))
    except RecursionError:
        raise BadInput(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: nested too deep") from None
    except yaml.MarkedYAMLError as error:
        raise BadInput(_of_yaml(path, error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if values is None:
        raise BadInput(f"{path}: is empty; {INIT}")
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must be a mapping with the keys {', '.join(known)}; {INIT}")
    return values, lines


def _of_yaml(path: Path, error: yaml.MarkedYAMLError) -> str:
    """Returns the problem of a text that is not YAML: the line, the parser's words, and what to look at."""
    at, begun = error.problem_mark, error.context_mark
    line = f":{at.line + 1}" if at else ""
    if "'\\t'" in (error.problem or ""):
        return f"{path}{line}: not valid YAML: a line is indented with a tab; write spaces"
    where = f" that begins in line {begun.line + 1}" if begun and at and begun.line != at.line else ""
    return f"{path}{line}: not valid YAML: {error.problem} {error.context or ''}".rstrip() + where


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} stands twice; keep one")
    return values


def override(values: dict, text: str) -> str | None:
    """Sets one key=value in place; returns a problem or None."""
    key, sep, raw = text.partition("=")
    if not sep or not key:
        return f"{text!r}: an override is written key=value, e.g. optim.lr=1e-4"
    try:
        value = read_yaml(raw)
    except yaml.YAMLError as error:
        return f"{text!r}: the value is not valid YAML ({error})"
    if isinstance(value, dict | list) and not raw.lstrip().startswith(("{", "[")):
        value = raw  # a prompt such as "query: ", which the shell has taken the quotes from
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            return f"{text!r}: {parent} is not a section of the run file"
    node[last] = value
    return None
