"""Arguments and values of other trainers, and what they are here: other_trainers.yaml. No torch.

`python -m trainer.config.other_trainers` prints the tables of docs/reference/migrate.md.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trainer.config.spelling import misspelt, respelt, squashed

FILE = Path(__file__).with_name("other_trainers.yaml")
Write = Callable[[str, str | None], str]  # (key, value or None for the user's own) -> how a frontend states it


class Setting(NamedTuple):
    """A key of the run file, and its value there; None: the user's own value, of which there is an example."""

    key: str
    value: str | None
    example: str

    @classmethod
    def read(cls, text: str) -> "Setting":
        key, _, value = text.partition("=")
        own = re.fullmatch(r"<(.*)>", value)
        return cls(key, None if own else value, own[1] if own else value)


@dataclass(frozen=True)
class Entry:
    """Names of one meaning, and how it is stated here. The fields are those of other_trainers.yaml."""

    theirs: tuple[str, ...]
    ours: tuple[Setting, ...] = ()
    beside: tuple[Setting, ...] = ()
    if_false: tuple[Setting, ...] = ()
    remark: str = ""
    per_device: str = ""  # "batch" or "accumulation"

    @classmethod
    def read(cls, row: dict[str, Any]) -> "Entry":
        lists = {name: tuple(map(Setting.read, map(str, row.get(name, ())))) for name in ("ours", "beside", "if_false")}
        names = tuple(str(row["theirs"]).split())
        return cls(names, **lists, remark=str(row.get("remark", "")), per_device=row.get("per_device", ""))


@cache
def contents() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@cache
def keys() -> dict[str, list[Entry]]:
    """Returns subject -> its arguments."""
    return {subject: [Entry.read(row) for row in rows] for subject, rows in contents()["keys"].items()}


@cache
def values() -> dict[str, list[Entry]]:
    """Returns key of the run file -> the names that its values have elsewhere."""
    return {key: [Entry.read(row) for row in rows] for key, rows in contents()["values"].items()}


@cache
def arguments() -> list[Entry]:
    """Returns all arguments. Names of losses are among them, as a run file has them as keys too."""
    return [entry for rows in keys().values() for entry in rows] + values()["loss.name"]


def find(name: str, of: str = "", section: str = "") -> Entry | None:
    """Returns the entry of a name in any spelling. of: the key whose values are looked through; without, arguments are.
    section: where the name stands, for names of that section only."""
    by_name = _index(of)
    exact = by_name.get(f"{section}.{squashed(name)}") or by_name.get(squashed(name))
    if exact:
        return exact
    low = name.casefold().replace("-", "_")
    beginnings = [theirs for theirs in by_name if theirs.endswith("*") and low.startswith(theirs[:-1])]
    return by_name[max(beginnings, key=len)] if beginnings else None


@cache
def _index(of: str) -> dict[str, Entry]:
    entries = values().get(of, []) if of else arguments()
    return {squashed_path(theirs): entry for entry in reversed(entries) for theirs in entry.theirs}


def squashed_path(name: str) -> str:
    """Returns a name of the table as it is looked up: squashed, but for a section before it or a * behind it."""
    return name if "*" in name else ".".join(map(squashed, name.split(".")))


def sentence(entry: Entry, write: Write, value: Any = True) -> str:
    """Returns what an argument is here, as a sentence. value: what the user gave it."""
    settings, aside = entry.ours, f" ({entry.remark})" if entry.remark else ""
    if value is False and entry.if_false:
        settings, aside = entry.if_false, ""
    elif value in (False, None) and settings and settings[0].value is not None:
        return "Leave it out."
    if not settings:
        return f"There is no such key. {_capital(entry.remark)}."
    return f"Write {listed(dict.fromkeys(write(key, fixed) for key, fixed, _ in settings))}{aside}."


def _capital(text: str) -> str:
    """Returns a remark as a sentence: its first word gets a capital, unless it is code."""
    word = text.split()[0].rstrip(",;:")
    return f"{text[0].upper()}{text[1:]}" if word.isalpha() and word not in ("python", "infonce") else text


def in_run_file(key: str, value: str | None) -> str:
    return f"{key}={value}" if value else key


def listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def about_value(key: str, value: Any, choices: Iterable) -> str:
    """Returns what to write in place of a value that is none of the choices, as ` A sentence.`, or an empty string."""
    if same := respelt(value, choices):
        return f" Did you mean {same[0]!r}?"
    name = str(value)
    if entry := find(name, key):
        return f" {_of_value(entry)}"
    theirs = [each for entry in values().get(key, []) for each in entry.theirs if "*" not in each]
    near = misspelt(name, [*(choice for choice in choices if isinstance(choice, str)), *theirs])
    if not near:
        return ""
    entry = None if near[0] in choices else find(near[0], key)
    return f" Did you mean {near[0]!r}?" + (f" {_of_value(entry)}" if entry else "")


def _of_value(entry: Entry) -> str:
    return sentence(entry, in_run_file) if entry.ours else f"{_capital(entry.remark)}."


def about_shape(key: str) -> str:
    """Returns what a key takes, behind a message about the kind or range of its value, or an empty string."""
    hint = contents()["shapes"].get(key, "")
    return f": {hint}" if hint else ""


def tables() -> str:
    """Markdown: a table for each subject, and one of values."""
    lines = []
    for subject, entries in keys().items():
        lines += [f"### {subject}", "", "| argument | run file | remark |", "| --- | --- | --- |"]
        lines += [f"| {_code(entry.theirs)} | {_settings(entry)} | {entry.remark} |" for entry in entries]
        lines.append("")
    lines += ["### Values", "", "| value | of | run file | remark |", "| --- | --- | --- | --- |"]
    for key, entries in values().items():
        of = "`--engine`" if key == "engine" else f"`{key}`"
        lines += [f"| {_code(entry.theirs)} | {of} | {_settings(entry)} | {entry.remark} |" for entry in entries]
    return "\n".join(lines)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _settings(entry: Entry) -> str:
    stated = [f"{key}={example}" if example else key for key, _, example in (*entry.ours, *entry.beside)]
    return " ".join(f"`{text}`" for text in stated) or "none"


if __name__ == "__main__":
    print(tables())
