"""What a model is to answer, and its answer to pairs: JSON as asked for, or fenced, chatty, malformed, cut off."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from data_prep.reading.formats import kind
from data_prep.records import normalise

CUT_OFF = "cut off: the answer ends inside a pair"
MOST_FAILURES = 500  # brackets that open no JSON, after which an answer is neither searched on nor mended
_TEXT = {"type": "string"}
_PAIR = {"type": "object", "properties": {"question": _TEXT, "answer": _TEXT}, "required": ["question", "answer"]}
_PAIRS = {"pairs": {"type": "array", "items": {**_PAIR, "additionalProperties": False}}}
_SCHEMA = {"type": "object", "properties": _PAIRS, "required": ["pairs"], "additionalProperties": False}
PAIRS_FORMAT = {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": _SCHEMA}}
_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_OPEN = re.compile(r"[\[{]")


@dataclass(slots=True)
class Parsed:
    """pairs: (question, answer) in order. misfits: why each other part of the answer is no pair."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


def parse(text: str, cut: bool = False) -> Parsed:
    """The pairs in a model's answer: every object with the keys "question" and "answer", at any depth. cut: the server
    says that the answer was cut off at its limit of tokens.

    JSON that is whole counts as it is, wherever it stands in the text. JSON that is no more than cut off keeps its
    whole pairs: half an answer would be trained on. What is malformed is mended by json-repair, which closes what is
    open: of an answer that was cut, the last pair is left out. A reasoning model's <think> part is left out.
    """
    text = _THOUGHT.sub("", text, count=1)
    values, rest, ends_inside, failures = _whole_values(text)
    found = _collect(values)
    if failures >= MOST_FAILURES:
        found.misfits.append("a heap of brackets that open no JSON")
    elif ends_inside:
        if rest.strip(" \t\r\n,]}"):
            found.misfits.append(CUT_OFF)
    elif failures:
        mended = _mended(text, cut)
        if len(mended.pairs) > len(found.pairs):  # else the whole ones are all there is, and exact
            found = mended
    if not found.pairs and not found.misfits:
        found.misfits.append(_why_nothing(text, values))
    return found


def _whole_values(text: str) -> tuple[list[Any], str, bool, int]:
    """The outermost whole JSON arrays and objects in a text; what follows the last; whether the text ends inside one;
    how many brackets opened none."""
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
    """Whether the text is valid JSON up to its end, so that it was cut off rather than malformed."""
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
    found = Parsed()
    seen: set[str] = set()
    for value in values:
        _walk(value, found, seen)
    return found


def _walk(value: Any, found: Parsed, seen: set[str]) -> None:
    if isinstance(value, dict):
        keys = {key.strip().casefold(): key for key in value}
        if "question" in keys or "answer" in keys:
            _pair(*(value.get(keys.get(name)) for name in ("question", "answer")), found, seen)
            return
        value = list(value.values())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        found.misfits += [f"not an object: {kind(item)}" for item in value if not isinstance(item, dict)]
    if isinstance(value, list):
        for item in value:
            _walk(item, found, seen)


def _pair(question: Any, answer: Any, found: Parsed, seen: set[str]) -> None:
    for name, text in (("question", question), ("answer", answer)):
        if text is None or text == "":
            found.misfits.append(f"without {name}: no text under this key")
        elif not isinstance(text, str):
            found.misfits.append(f"{name} is no text: {kind(text)}")
        elif not text.strip():
            found.misfits.append(f"without {name}: only white space")
        elif not _writable(text):
            found.misfits.append(f"{name} is no text: holds half of a surrogate pair (a cut emoji)")
        else:
            continue
        return
    question, answer = question.strip(), answer.strip()
    key = normalise(question)
    if key == normalise(answer):
        found.misfits.append("the answer repeats the question")
    elif key in seen:
        found.misfits.append("the question stands twice in one answer")
    else:
        seen.add(key)
        found.pairs.append((question, answer))


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
