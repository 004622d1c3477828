"""The answer format that is asked for, and the parser of answers: JSON, or fenced, chatty, malformed, cut off."""

import json
import re
from bisect import bisect
from dataclasses import dataclass, field
from typing import Any

from data_prep.reading.row import kind
from data_prep.records import normalise

CUT_OFF = "cut off: the answer ends inside a pair"
IN_THOUGHT = "no answer: it ends inside a thought of the model"
MOST_FAILURES = 500  # brackets that open no JSON; beyond them the parser gives up
_TEXT = {"type": "string"}
_PAIR = {"type": "object", "properties": {"question": _TEXT, "answer": _TEXT}, "required": ["question", "answer"]}
_PAIRS = {"pairs": {"type": "array", "items": {**_PAIR, "additionalProperties": False}}}
_SCHEMA = {"type": "object", "properties": _PAIRS, "required": ["pairs"], "additionalProperties": False}
PAIRS_FORMAT = {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": _SCHEMA}}
_OPEN = re.compile(r"[\[{]")

# Marks of thoughts: <think>, [THINK], ◁think▷, <seed:think>, <|begin_of_thought|>, channels, and marks that lost theirs
_NAME = (
    r"(?P<{}>think|thought|reason|reflect|analysis|deliberation|rationale|scratch[-_ ]?pad|inner[-_ ]?monologue|cot"
    r"|chain[-_ ]?of[-_ ]?thoughts?)(?:ing|ion|s)?(?:[-_ ]?process)?"
)
_LEFT, _RIGHT = r"(?:[<＜][|｜]?|&lt;|\[|◁)\s*", r"\s*(?:[|｜]?[>＞]|&gt;|\](?!\()|▷)"
_MARK = re.compile(
    rf"{_LEFT}(?:[/\\]\s*(?:\w+:)?{_NAME.format('end')}|end[-_ ]?(?:of[-_ ])?{_NAME.format('end_of')}"
    rf"|{_NAME.format('name_end')}[-_ ]?end){_RIGHT}"
    rf"|{_LEFT}(?:(?:begin|start)[-_ ]?(?:of[-_ ])?)?(?:\w+:)?{_NAME.format('start')}(?:[-_ ]?(?:start|begin))?"
    rf"(?:\s[^<>\[\]{{}}]*=[^<>\[\]{{}}]*(?<!/))?{_RIGHT}"
    r"|(?P<end_channel><\|channel\|?>\s*final|<channel\|>|assistantfinal(?-i:(?![a-z])))"
    r"|(?P<start_channel><\|channel\|?>|assistant(?:analysis|commentary)|\A\s*(?-i:analysis(?=[A-Z])))"
    r"|(?P<end_inner><\|inner_suffix\|>|<unused95>|\.\.\.done thinking\.|here(?:'s| is) my response:)"
    r"|(?P<start_inner><\|inner_prefix\|>|<unused94>|^thinking\.\.\.\s*$|here(?:'s| is) my thought process:)"
    r"|(?P<end_solution><\|(?:(?:begin|start)_(?:of_)?(?:solution|response|answer)|content)\|>)"
    r"|(?P<start_details><details\b[^<>]*(?:reason|think|thought)[^<>]*>)|(?P<close_details></details\s*>)"
    r"|(?P<close_message><\|end\|>)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER = re.compile(r"<(?:final[-_ ]?)?(?:answer|response|output|solution|final)>(?=[^\[{]*[\[{])", re.IGNORECASE)
# Headings: a line "Thinking:", "## Reasoning" or "**Thought process**", and "Answer:" before the pairs
_LINE, _HEAD_END = r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]*)?[*_]{0,3}", r"[ \t]*(?::[*_]{0,3}|[*_]{1,3}:?|$)"
_THOUGHT_HEADS = rf"(?:my[ \t]+)?(?:{_NAME.format('heading')}|step[- ]by[- ]step|let(?:'s| us) think)"
_ANSWER_HEADS = r"(?:(?:my|the|final)[ \t]+){0,2}(?:answers?|response|output|result|json|pairs)"
_HEADING = re.compile(rf"{_LINE}{_THOUGHT_HEADS}{_HEAD_END}", re.IGNORECASE | re.MULTILINE)
_ANSWER_HEADING = re.compile(rf"{_LINE}{_ANSWER_HEADS}{_HEAD_END}(?=[^\[{{]*[\[{{])", re.IGNORECASE | re.MULTILINE)
_THOUGHT_KEY = re.compile(rf"(?:\w+[-_ ])?{_NAME.format('key')}(?:[-_ ](?:content|details))?|drafts?", re.IGNORECASE)


@dataclass(slots=True)
class Parsed:
    """The content of one answer."""

    pairs: list[tuple[str, str]] = field(default_factory=list)  # (question, answer), in order
    misfits: list[str] = field(default_factory=list)  # why each other part is no pair


def parse(text: str, cut: bool = False) -> Parsed:
    """Returns the pairs in a model's answer: every object with the keys "question" and "answer", at any depth.

    - Only what follows the last thought counts, whatever marks it, with or without a mark where it begins.
    - Whole JSON is taken as it is, anywhere in that text.
    - JSON that is only cut off keeps its whole pairs: half an answer must not be trained on.
    - json-repair mends malformed JSON and closes what is open. If the answer was cut, its last pair is dropped.

    cut: the server says that the answer ends at its limit of tokens.
    """
    text, inside = _after_thoughts(text)
    if inside:
        return Parsed(misfits=[IN_THOUGHT])
    values, rest, ends_inside, failures, _ = _whole_values(text)
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


def is_thought(name: str) -> bool:
    """Returns True for the name of a field or part that holds a thought: "reasoning_content", "thinking"."""
    return bool(_THOUGHT_KEY.fullmatch(name.strip()))


def _after_thoughts(text: str) -> tuple[str, bool]:
    """Returns the text after the last thought, and if the text ends inside one: then nothing follows it.

    - An end without a beginning ends a thought that began with the text: servers cut the first mark away.
    - An end of another notation than the one that is open is a word of the thought.
    - A mark inside a whole pair is a word of the pair.
    - Headings part a thought from the answer too, where both have one ("Thinking:" … "Answer:").
    """
    marks = list(_MARK.finditer(text))
    pairs = _pair_spans(text) if marks or _ANSWER.search(text) or _HEADING.search(text) else []
    opened: dict[str, str] = {}  # notation -> its mark, in the order of the text
    begin = 0
    for mark in marks:
        if _within(mark, pairs):
            continue
        starts, notation = _read_mark(mark, opened)
        if starts:
            opened.setdefault(notation, mark[0])
        elif notation is not None and (notation in opened or not opened):
            while opened and opened.popitem()[0] != notation:
                continue
            if not opened:
                begin = mark.end()
    if opened:
        return "", True
    answers = (mark for mark in _ANSWER.finditer(text, begin) if not _within(mark, pairs))
    first = next(answers, None)
    return text[max(first.end() if first else begin, _after_headings(text, pairs)) :], False


def _after_headings(text: str, pairs: list[tuple[int, int]]) -> int:
    """Returns where the answer begins if headings part it from a thought: behind the last one before a bracket; else 0.

    A heading of a thought alone says nothing on where the thought ends.
    """
    thought = next((mark for mark in _HEADING.finditer(text) if not _within(mark, pairs)), None)
    answers = _ANSWER_HEADING.finditer(text, thought.end()) if thought else ()
    return max((mark.end() for mark in answers if not _within(mark, pairs)), default=0)


def _read_mark(mark: re.Match[str], opened: dict[str, str]) -> tuple[bool, str | None]:
    """Returns True if a thought starts here, and its notation; None if the mark ends something else."""
    kind, last = mark.lastgroup, next(reversed(opened), "")
    if kind == "close_details":
        return False, "details" if "details" in opened else None
    if kind == "close_message":
        return False, last if opened.get(last, "").startswith("<|") else None
    starts, _, notation = kind.partition("_")
    if kind in ("start", "end", "end_of", "name_end"):
        notation = mark[kind].casefold()
        notation = "think" if notation == "thought" else notation
    return starts == "start", notation


def _pair_spans(text: str) -> list[tuple[int, int]]:
    """Returns where the whole JSON values with a pair lie, in order."""
    values, _, _, _, spans = _whole_values(text)
    return [span for value, span in zip(values, spans) if _collect([value]).pairs]


def _within(mark: re.Match[str], spans: list[tuple[int, int]]) -> bool:
    after = bisect(spans, (mark.start(), len(mark.string)))
    return after > 0 and mark.start() < spans[after - 1][1]


def _whole_values(text: str) -> tuple[list[Any], str, bool, int, list[tuple[int, int]]]:
    """Returns the outermost whole JSON arrays and objects of a text, the text after the last, whether the text ends
    inside one, how many brackets opened none, and where the values lie."""
    decoder = json.JSONDecoder(strict=False)  # models write line breaks into strings
    values, at, failures, end, ends_inside = [], 0, 0, 0, False
    spans: list[tuple[int, int]] = []
    while failures < MOST_FAILURES and (match := _OPEN.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, match.start())
            values.append(value)
            spans.append((match.start(), at))
            end = at
        except json.JSONDecodeError as error:
            ends_inside |= _at_end(error, text)
            at, failures = match.end(), failures + 1
        except ValueError:  # a number of more digits than Python reads
            at, failures = match.end(), failures + 1
        except RecursionError:
            failures = MOST_FAILURES
    return values, text[end:], ends_inside, failures, spans


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
        value = [inner for key, inner in value.items() if not is_thought(key)]
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
