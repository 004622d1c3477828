"""Reads a run file into a validated RunConfig; every problem names file, line and key. No torch."""

import json
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.common.paths import user_path
from trainer.config.other_trainers import about_shape, about_value, find
from trainer.config.sections import RunConfig
from trainer.config.unknown_keys import FIRST_KEYS, answer
from trainer.config.yaml_reader import SUFFIXES, override, read_values


def _known_path(loc: tuple) -> tuple[tuple, type[BaseModel]]:
    """Returns the part of a pydantic location that names keys, and its section. Indices follow it."""
    section: type[BaseModel] = RunConfig
    depth = 0
    while depth < len(loc):
        field = section.model_fields.get(loc[depth])
        inner, by_name = _section_in(field.annotation) if field else (None, False)
        depth += 2 if by_name else 1
        if inner is None or depth >= len(loc):
            return loc[:depth], section
        section = inner
    return loc, section


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Returns the section class that a field holds, and True if the field maps the user's names to such sections."""
    parts = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is None]
    inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    return inner, inner is not None and get_origin(annotation) is dict


_SECTIONS = [key for key, field in RunConfig.model_fields.items() if _section_in(field.annotation)[0]]


def _problem(error: dict, where: str, lines: dict[tuple, int | str]) -> tuple[str, str]:
    """Returns (key, message) of a pydantic error."""
    path, section = _known_path(error["loc"])
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    line = line or next((at for below, at in lines.items() if below[: len(path)] == path), None)  # by an override
    origin = line if isinstance(line, str) else f"{where}:{line}" if line else where
    key = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        return key, f"{origin}: {_unknown(path, error['input'], section)}"
    if error["type"] == "missing" and path == error["loc"]:
        return key, f"{origin}: key {key!r} is missing"
    given = json.dumps(error["input"], default=str, ensure_ascii=False)[:80]
    if error["type"] == "model_type":
        mend = _elsewhere(key, error["input"]) or f": write {_as_section(key, error['input'])}"
        return key, f"{origin}: {key} is a section (given: {given}){mend}{about_shape(key)}"
    text = _text(error)
    if not path:  # of a key of the whole file, which the text names
        return text.split()[0], f"{origin}: {text}"
    return key, f"{origin}: {key}: {text[0].lower()}{text[1:]} (given: {given}){_mend(path, error['input'], section)}"


_WHOLE, _NUMBER, _SWITCH = "must be a whole number", "must be a number", "must be true or false"
_TEXTS = {  # type of a pydantic error -> words
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), _NUMBER),
    **dict.fromkeys(("bool_parsing", "bool_type"), _SWITCH),
    "string_type": "must be a text",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
}


def _text(error: dict) -> str:
    """Returns the words for a refused value."""
    if error["type"] in _TEXTS:
        return _TEXTS[error["type"]].format_map(error.get("ctx", {}))
    return error["msg"].removeprefix("Value error, ")


def _unknown(path: tuple, value: Any, section: type[BaseModel]) -> str:
    known = list(section.model_fields)
    mend = answer(tuple(map(str, path)), value, known)
    listed = f" Known here: {', '.join(known)}" if not mend or mend.endswith("'?") else ""
    return f"unknown key {'.'.join(map(str, path))!r}.{' ' * bool(mend)}{mend}{listed}"


def _elsewhere(key: str, value: Any) -> str:
    """Returns what to write for a section given as another trainer's value (`loss: MultipleNegativesRankingLoss`), as
    `. A sentence.`, or an empty string."""
    first = f"{key}.{FIRST_KEYS.get(key)}"
    entry = find(value, first) if isinstance(value, str) else None
    return f".{about_value(first, value, ())}" if entry and value not in [each.value for each in entry.ours] else ""


def _as_section(key: str, value: Any) -> str:
    """Returns a section as it is written; a single value is that of its first key."""
    first = FIRST_KEYS.get(key.rpartition(".")[2])
    one = first and isinstance(value, str)
    return f"{key}: {{{first}: {value}}}" if one else f"{key}: {{key: value}}"


def _mend(path: tuple, value: Any, section: type[BaseModel]) -> str:
    """Returns what to write in place of a refused value, or an empty string."""
    inside = path[2:] if path[0] == "sources" and len(path) > 2 else path  # sources.NAME.loss has the keys of loss
    key = ".".join(map(str, inside))
    field = section.model_fields.get(str(path[-1]))
    choices = [name for part in get_args(field and field.annotation) for name in get_args(part) or (part,)]
    choices = [name for name in choices if isinstance(name, str | int)]
    if value is None:
        return ": leave it out for the default"
    if value not in choices and (mend := about_value(key, value, choices)):
        return f".{mend}"
    named = f": one of {', '.join(map(str, choices))}" if isinstance(value, bool) and choices else ""
    return about_shape(key) or named


def load_config(path: str | Path, overrides: list[str] | tuple = ()) -> RunConfig:
    """Reads a run file (.yaml, .yml or .json) and `section.key=value` overrides. Raises BadInput with every problem:
    file, line, key and the nearest known key."""
    path = user_path(path)
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path}: a run file ends in .yaml, .yml or .json")
    values, lines = read_values(path, RunConfig.model_fields)
    values |= {key: {} for key in _SECTIONS if values.get(key, 0) is None}  # `train:` left empty
    problems = [problem for text in overrides if (problem := override(values, text))]
    for text in overrides:  # a problem with these is not the file's
        lines[tuple(text.partition("=")[0].split("."))] = f"override {text}"
    return parse_config(with_eval_off(values), str(path), lines, problems)


def with_eval_off(values: dict) -> dict:
    """Returns the values of a run file with False for `data.eval: null`. A run.json's null is the default."""
    data = values.get("data")
    if isinstance(data, dict) and "eval" in data and data["eval"] is None:
        return values | {"data": data | {"eval": False}}
    return values


def parse_config(
    values: dict, where: str, lines: dict[tuple, int | str] | None = None, problems: list[str] | None = None
):
    """Validates nested values into a RunConfig; `where` names their origin in messages."""
    problems = problems or []
    try:
        config = RunConfig.model_validate(values, strict=False)
    except ValidationError as error:
        # A failed union reports every branch: a reader can use one line per key, of the branch that went deepest.
        unique: dict[str, tuple[int, str]] = {}
        for entry in error.errors():
            key, line = _problem(entry, where, lines or {})
            if key not in unique or unique[key][0] < len(entry["loc"]):
                unique[key] = len(entry["loc"]), line
        raise BadInput(problems + [line for _, line in unique.values()]) from None
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        problems.append(f"{where}: optim.betas must lie in [0, 1) (given: {list(config.optim.betas)})")
    check(problems)
    return config


def parse_section(name: str, values: dict, where: str):
    """Validates one section of the run file from plain values, e.g. flags. Raises BadInput like load_config."""
    whole = {"output_dir": "unused", "model": {"path": "unused"}, "data": {"train": "unused"}, name: values}
    return getattr(parse_config(whole, where), name)
