"""Answers to keys that the run file does not know. No torch.

- A respelling of a key of the same section: its right spelling.
- An argument of another trainer: how it is stated here, or that there is no such thing (other_trainers.yaml).
- A key of ours in another section: the whole key.
- A misspelling of any of these: the same. Nothing else is guessed: a guess could change what is learnt.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from trainer.config.other_trainers import Write, arguments, contents, find, in_run_file, sentence
from trainer.config.sections import RunConfig
from trainer.config.spelling import misspelt, respelt, squashed

FIRST_KEYS = {"model": "path", "data": "train", "loss": "name", "optim": "name"}  # of a section given as one value
GENERIC = {
    "name",
    "path",
    "start",
    "eval",
    "train",
    "loss",
    "model",
    "margin",
}  # too common a word to know which key is meant


@dataclass(frozen=True)
class Frontend:
    """The form in which a way into training states a key."""

    write: Write = in_run_file
    per_device: Mapping[str, str] = field(default_factory=dict)  # batch, accumulation -> its own name for them


RUN_FILE = Frontend()
BEHIND_A_COMMAND = Frontend(lambda key, value: f"{key}={'…' if value is None else value}")


@cache
def own_keys() -> tuple[str, ...]:
    """Returns every key of the run file, sections and `sources` left out."""
    return tuple(_keys_of(RunConfig, ()))


def _keys_of(section: type[BaseModel], prefix: tuple[str, ...]) -> Iterable[str]:
    for name, each in section.model_fields.items():
        kinds = (each.annotation, *get_args(each.annotation))  # a section that may be absent is one of several
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner and name != "sources":
            yield from _keys_of(inner, (*prefix, name))
        elif name != "sources":
            yield ".".join((*prefix, name))


def answer(path: tuple[str, ...], value: Any, known: Iterable[str], frontend: Frontend = RUN_FILE) -> str:
    """Returns a sentence about an unknown key, or an empty string where nothing is known of it.

    path: section and key, as given. value: what the user gave it, True where that is not known. known: keys of the
    section, or names of the frontend.
    """
    whole = ".".join(path)
    if frontend is RUN_FILE and whole in own_keys():  # a dot in a key of a file
        return f"Write it nested: {whole.replace('.', ': {')}: …{'}' * whole.count('.')}."
    path = tuple(whole.split("."))
    word = path[-1]
    if same := respelt(word, known):
        return f"Did you mean {same[0]!r}?"
    if isinstance(value, dict):
        near = misspelt(word, known)
        return f"Did you mean {near[0]!r}?" if near else _of_section(path, value, frontend)
    if found := _known_elsewhere(path, value, frontend):
        return found
    theirs = [name for entry in arguments() for name in entry.theirs if "*" not in name and "." not in name]
    leaves = [key.rpartition(".")[2] for key in own_keys()]
    near = misspelt(word, known) or misspelt(word, leaves) or misspelt(word, theirs)
    if not near:
        return ""
    more = "" if near[0] in known else _known_elsewhere((*path[:-1], near[0]), value, frontend)
    return f"Did you mean {near[0]!r}?{' ' * bool(more)}{more}"


def about_flag(text: str, flags: Iterable[str], frontend: Frontend = BEHIND_A_COMMAND) -> str:
    """Returns the problem of a word of a command line that is none of the flags, given with their dashes."""
    name, _, value = text.lstrip("-").partition("=")
    path = tuple(name.split("."))  # --optim.lr: a key with the dashes of a flag
    mend = answer(path, value.lower() != "false", () if len(path) > 1 else flags, frontend)
    return f"{text.partition('=')[0]}: no such flag.{' ' * bool(mend)}{mend}"


def _known_elsewhere(path: tuple[str, ...], value: Any, frontend: Frontend) -> str:
    """Returns what another trainer's argument, or a key of ours in a wrong section, is here; or an empty string."""
    section = ".".join(map(squashed, path[:-1]))
    if entry := find(path[-1], section=section):
        if own := frontend.per_device.get(entry.per_device):
            return f"Write {own}."
        return sentence(entry, frontend.write, value)
    first = FIRST_KEYS.get(path[-1])
    ours = _own(path) or ([f"{path[-1]}.{first}"] if first else [])
    return f"Write {' or '.join(frontend.write(key, None) for key in ours)}." if ours else ""


def _own(path: tuple[str, ...]) -> list[str]:
    """Returns the keys of ours that end like a path: lora_r, lora.r and r are model.lora.r."""
    for asked in (squashed("".join(path)), squashed(path[-1])):
        hits = [key for key in own_keys() if asked in _endings(key)]
        if hits and asked not in GENERIC:
            return hits
    return []


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [squashed("".join(parts[start:])) for start in range(len(parts))]


def _of_section(path: tuple[str, ...], inner: dict, frontend: Frontend) -> str:
    """Returns where the keys of an unknown section stand here."""
    of_names = {squashed(name): ours for ours, names in contents()["sections"].items() for name in names.split()}
    section = of_names.get(squashed(path[-1])) or next(iter(misspelt(path[-1], RunConfig.model_fields)), "")
    said = []
    for name, value in ((str(key), value) for key, value in inner.items()):
        at_home = f"{section}.{name}" in own_keys()
        about = answer((*path, name), value, (), frontend)
        said.append(f"Write {frontend.write(f'{section}.{name}', None)}." if at_home else about or "Unknown.")
    head = [f"Did you mean the section {section!r}?"] if section else []
    return " ".join([*head, *(f"{name}: {text}" for name, text in zip(inner, said))])
