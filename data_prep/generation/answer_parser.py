"""The answer format that is asked for, and the parser of answers: JSON, or fenced, chatty, malformed, cut off."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from data_prep.reading.formats import kind
from data_prep.records import normalise

CUT_OFF = "cut off: the answer ends inside a pair"
MOST_FAILURES = 500  # brackets that open no JSON; beyond them the parser gives up
_TEXT = {"type": "string"}
_PAIR = {"type": "object", "properties": {"question": _TEXT, "answer": _TEXT}, "required": ["question", "answer"]}
_PAIRS = {"pairs": {"type": "array", "items": {**_PAIR, "additionalProperties": False}}}
_SCHEMA = {"type": "object", "properties": _PAIRS, "required": ["pairs"], "additionalProperties": False}
PAIRS_FORMAT = {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": _SCHEMA}}
_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_OPEN = re.compile(r"[\[{]")


@dataclass(slots=True)
class Parsed:
    """The content of one answer."""

    pairs: list[tuple[str, str]] = field(default_factory=list)  # (question, answer), in order
    misfits: list[str] = field(default_factory=list)  # why each other part is no pair


def parse(text: str, cut: bool = False) -> Parsed:
    """Returns the pairs in a model's answer: every object with the keys "question" and "answer", at any depth.

    - Whole JSON is taken as it is, anywhere in the text. A reasoning model's <think> part is removed first.
    - JSON that is only cut off keeps its whole pairs: half an answer must not be trained on.
    - json-repair mends malformed JSON and closes what is open. If the answer was cut, its last pair is dropped.

    cut: the server says that the answer ends at its limit of tokens.
    """
    text = _THOUGHT.sub("", text, count=1)
    values, rest, ends_inside, failures = _whole_values(text)
    parsed = _collect(values)
    if failures >= MOST_FAILURES:
        parsed.misfits.append("a heap of brackets that open no JSON")
    elif ends_inside:
        if rest.strip(" \t\r\n,]}"):
            parsed.misfits.append(CUT_OFF)
    elif failures:
        mended = _mended(text, cut)
        if len(mended.pairs) > len(parsed.pairs):  # otherwise the whole ones are complete and exact
            parsed = mended
    if not parsed.pairs and not parsed.misfits:
        parsed.misfits.append(_why_nothing(text, values))
    return parsed


def _whole_values(text: str) -> tuple[list[Any], str, bool, int]:
    """Returns the outermost whole JSON arrays and objects of a text, the text after the last, whether the text ends
    inside one, and how many brackets opened none."""
    decoder = json.JSONDecoder(strict=False)  # models write line breaks into strings
    values, at, failures, end, ends_inside = [], 0, 0, 0, False
    while failures < MOST_FAILURES and (match := _OPEN.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, match.start())
            values.append(value)
            end = at
        except json.JSONDecodeError as error:
            ends_inside |= _at_end(error, text)
            at, failures = match.end(), failures + 1
        except RecursionError:
            failures = MOST_FAILURES
    return values, text[end:], ends_inside, failures


def _at_end(error: json.JSONDecodeError, text: str) -> bool:
    """Returns True if the text is valid JSON up to its end, so that it was cut off rather than malformed."""
    if error.msg.startswith("Unterminated string"):
        return True
    last = len(text.rstrip())
    return error.pos >= (last - 5 if "escape" in error.msg else last)  # \uXXXX may be cut too


def _mended(text: str, cut: bool) -> Parsed:
    from json_repair import loads

    try:
        mended = _collect([loads(text)])
    except (RecursionError, ValueError):
        return Parsed()
    if cut and mended.pairs:
        mended.pairs.pop()
        mended.misfits.append(CUT_OFF)
    return mended


def _collect(values: list[Any]) -> Parsed:
    parsed = Parsed()
    seen: set[str] = set()
    for value in values:
        _walk(value, parsed, seen)
    return parsed


def _walk(value: Any, parsed: Parsed, seen: set[str]) -> None:
    if isinstance(value, dict):
        keys = {key.strip().casefold(): key for key in value}
        if "question" in keys or "answer" in keys:
            _pair(*(value.get(keys.get(name)) for name in ("question", "answer")), parsed, seen)
            return
        value = list(value.values())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parsed.misfits += [f"not an object: {kind(item)}" for item in value if not isinstance(item, dict)]
    if isinstance(value, list):
        for item in value:
            _walk(item, parsed, seen)


def _pair(question: Any, answer: Any, parsed: Parsed, seen: set[str]) -> None:
    for name, text in (("question", question), ("answer", answer)):
        if text is None or text == "":
            parsed.misfits.append(f"without {name}: no text under this key")
        elif not isinstance(text, str):
            parsed.misfits.append(f"{name} is no text: {kind(text)}")
        elif not text.strip():
            parsed.misfits.append(f"without {name}: only white space")
        elif not _writable(text):
            parsed.misfits.append(f"{name} is no text: holds half of a surrogate pair (a cut emoji)")
        else:
            continue
        return
    question, answer = question.strip(), answer.strip()
    key = normalise(question)
    if key == normalise(answer):
        parsed.misfits.append("the answer repeats the question")
    elif key in seen:
        parsed.misfits.append("the question stands twice in one answer")
    else:
        seen.add(key)
        parsed.pairs.append((question, answer))


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_nothing(text: str, values: list[Any]) -> str:
    if not text.strip():
        return "empty answer"
    if not values:
        return "no JSON in the answer"
    if any(value in ([], {}) or (isinstance(value, dict) and [] in value.values()) for value in values):
        return "an empty list: the model found no question"
    return 'no object with "question" and "answer" in the JSON'
