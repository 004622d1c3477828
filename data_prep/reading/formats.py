"""Turns every accepted shape of a row, recognised by its keys, into a Record."""

import datetime
import decimal
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import say
from data_prep.common.errors import BadInput, nearest
from data_prep.reading.files import Blank, Item, Span, read_items
from data_prep.reading.row_problems import BadRow, Problem, Problems
from data_prep.records import Record, has_text

# Names that other tools give to negatives and scores: as metadata they would be lost to training without a word.
MISNAMED = {"neg", "negs", "negative", "negatives", "hard_neg", "hard_negs", "hard_negative", "hard_negatives"}
MISNAMED |= {"pos", "positives", "scores"}
MISSING = object()


class Row:
    """The keys of one row, taken one by one; the keys that remain become metadata."""

    def __init__(self, values: dict[str, Any], table: bool):
        self.values, self.table = dict(values), table
        self.found: list[str] = []  # problems
        self.extra: list[str] = []  # keys that became metadata

    def take(self, key: str, required: bool) -> Any:
        value = self.values.pop(key, MISSING)
        if value is MISSING or value is None:
            if required:
                state = "missing" if value is MISSING else "empty" if self.table else "null"
                self.found.append(f"key {key!r} is {state}")
            return None
        return value

    def text(self, key: str, required: bool = True) -> str:
        value = self.take(key, required)
        return "" if value is None else self._text(key, value)

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self.found.append(f"key {where!r} must be a text, not {kind(value)}")
            return ""
        if not value[:1].isalnum() and not has_text(value):
            self.found.append(f"key {where!r} is empty")
        return value

    def texts(self, key: str, required: bool = False) -> list[str]:
        value = self.take(key, required)
        if value is None:
            return []
        if not isinstance(value, list):
            self.found.append(f"key {key!r} must be a list of texts, not {kind(value)}")
            return []
        if required and not value:
            self.found.append(f"key {key!r} is empty: it needs at least one text")
        return [self._text(f"{key}[{i}]", text) for i, text in enumerate(value)]

    def name(self, key: str, required: bool = False) -> str:
        """Takes an id: a text, or a whole number that becomes a text."""
        value = self.take(key, required)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value == "" and not required:  # our own records may have no id yet
            return ""
        return "" if value is None else self._text(key, value)

    def number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.found.append(f"key {key!r} must be a number, not {kind(value)}")
            return 0.0
        if value != value or abs(value) == float("inf"):
            self.found.append(f"key {key!r} is {value}; it must be a finite number")
            return 0.0
        return float(value)

    def score(self, key: str = "score", required: bool = False) -> float | None:
        value = self.take(key, required)
        if value is None:
            return None
        score = self.number(key, value)
        if not 0.0 <= score <= 1.0:
            self.found.append(f"key {key!r} is {score:g}, outside 0..1; divide by the largest grade")
        return score

    def metadata(self) -> dict[str, Any]:
        """Returns the row's own metadata with every key that remains."""
        own = self.take("metadata", required=False)
        if isinstance(own, str) and self.table:  # a table holds it as JSON
            try:
                own = json.loads(own)
            except ValueError as error:
                self.found.append(f"key 'metadata' is no JSON object: {error}")
                own = None
        if own is not None and not isinstance(own, dict):
            self.found.append(f"key 'metadata' must be an object, not {kind(own)}")
            own = None
        merged = dict(own or {})
        for key, value in self.values.items():
            if value is None and self.table:
                continue
            if key in MISNAMED:
                text = "does not belong to this shape, so it would not be trained on; rename it"
                self.found.append(f"key {key!r} {text}")
            if merged.get(key, value) != value:
                self.found.append(f"key {key!r} has another value in 'metadata'; keep one of them")
            merged[key] = value
            self.extra.append(key)
        return self._plain(merged) if self.table else merged

    def _plain(self, value: dict[str, Any]) -> dict[str, Any]:
        """Turns dates and decimals of tables, which JSON lacks, into texts."""

        def text(item: Any) -> str:
            if isinstance(item, datetime.date | datetime.time):
                return item.isoformat()
            if isinstance(item, decimal.Decimal):
                return str(item)
            raise TypeError(f"metadata cannot hold {kind(item)}; leave that column out")

        try:
            return json.loads(json.dumps(value, default=text, allow_nan=False))
        except (TypeError, ValueError) as error:
            self.found.append(str(error))
            return {}


def kind(value: Any) -> str:
    """Describes the type of a value for people."""
    names = {bool: "true/false", str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    shown = f" ({value!r})" if isinstance(value, int | float | str) and len(repr(value)) < 30 else ""
    return names.get(type(value), type(value).__name__) + shown


def _own(row: Row, _: str | None) -> Record:
    query, positives = row.text("query"), row.texts("positives", required=True)
    negatives, score, teacher = row.texts("negatives"), row.score(), row.take("teacher_scores", required=False)
    if teacher is not None:
        if isinstance(teacher, list):
            teacher = [row.number(f"teacher_scores[{i}]", value) for i, value in enumerate(teacher)]
        else:
            row.found.append(f"key 'teacher_scores' must be a list of numbers, not {kind(teacher)}")
            teacher = None
    source = row.take("source", required=False)
    if not isinstance(source, str | None):
        row.found.append(f"key 'source' must be a text, not {kind(source)}")
    return Record(query, positives, negatives, score, teacher, source or "", doc_ids=row.texts("doc_ids"))


def _chunk(row: Row, positive: str | None) -> Record:
    chunk_id, question = row.name("chunk_id", required=True), row.text("question")
    has_context = row.values.get("context") is not None
    if has_context and positive is None:
        row.found.append("has both 'answer' and 'context': choose with --positive answer or --positive context")
    # the other text stays in the metadata, under its own name
    chosen = row.text("context" if positive == "context" else "answer")
    return Record(question, [chosen], doc_ids=[chunk_id])


def _pair(query: str, positive: str) -> Callable[[Row, str | None], Record]:
    """Builds records from these two keys; hard negatives are a list, or one text (a triplet)."""

    def build(row: Row, _: str | None) -> Record:
        record = Record(row.text(query), [row.text(positive)], row.texts("hard_negatives"))
        if row.values.get("negative") is not None:
            record.negatives.append(row.text("negative"))
        return record

    return build


def _lists(row: Row, _: str | None) -> Record:
    return Record(row.text("query"), row.texts("pos", required=True), row.texts("neg"))


def _scored(row: Row, _: str | None) -> Record:
    return Record(row.text("query"), [row.text("item")], score=row.score(required=True))


def _glossary(row: Row, _: str | None) -> Record:
    return Record(row.text("term"), [row.text("definition")])


class Shape(NamedTuple):
    required: tuple[str, ...]
    example: str
    build: Callable[[Row, str | None], Record]


SHAPES = (
    Shape(("query", "positives"), '{"query", "positives": […], …} (records)', _own),
    Shape(("chunk_id", "question", "answer"), '{"chunk_id", "question", "answer", "metadata", "context"?}', _chunk),
    Shape(("anchor", "positive"), '{"anchor", "positive", "hard_negatives"?: […]}', _pair("anchor", "positive")),
    Shape(("query", "positive"), '{"query", "positive", "negative"?}', _pair("query", "positive")),
    Shape(("question", "answer"), '{"question", "answer"}', _pair("question", "answer")),
    Shape(("query", "pos"), '{"query", "pos": […], "neg": […]}', _lists),
    Shape(("query", "item", "score"), '[query, item, score] or {"query", "item", "score"}, score in 0..1', _scored),
    Shape(("term", "definition"), '{"term", "definition"} (glossary)', _glossary),
)
ACCEPTED = " | ".join(shape.example for shape in SHAPES) + ". CSV, TSV and Parquet name the same keys as columns."


class UnknownShape(BadRow):
    """A row whose keys are none of the accepted shapes."""

    hint = f"accepted rows: {ACCEPTED}"


def recognise(values: dict[str, Any]) -> Shape:
    """Returns the only shape whose keys this row has. Raises UnknownShape, naming the nearest one."""
    fitting = _fitting(tuple(values))
    if len(fitting) > 1:  # a table has the columns of all its rows: null ones do not count
        filled = {key for key, value in values.items() if value is not None}
        fitting = [shape for shape in fitting if set(shape.required) <= filled] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        both = " and ".join(shape.example for shape in fitting)
        raise UnknownShape(f"the keys fit two shapes, {both}; remove the keys of one")
    keys = list(values)
    if not keys:
        raise UnknownShape("the row is empty: {}")
    if {"query", "position"} <= set(keys):
        raise UnknownShape("these are keys of a search log; make scored rows of it with: python -m data_prep logs")
    best = max(SHAPES, key=lambda shape: _likeness(shape, keys))
    lacking = [key for key in best.required if key not in values]
    hints = [(key, nearest(key, [k for k in keys if k not in best.required])) for key in lacking]
    missing = ", ".join(f"key {key!r} is missing" + (f" ({hint.strip()})" if hint else "") for key, hint in hints)
    shown = ", ".join(map(repr, keys[:12]))
    raise UnknownShape(f"unknown shape with keys {shown}; nearest is {best.example}: {missing}")


@lru_cache
def _fitting(keys: tuple[str, ...]) -> list[Shape]:
    """Returns the shapes whose keys are all present, without those whose keys are a part of another one's."""
    fitting = [shape for shape in SHAPES if set(shape.required) <= set(keys)]
    return [s for s in fitting if not any(set(s.required) < set(other.required) for other in fitting)]


def _likeness(shape: Shape, keys: list[str]) -> float:
    """Returns the share of the shape's keys that the row has; a near miss counts half."""
    hits = sum(1.0 if key in keys else 0.5 if nearest(key, keys) else 0.0 for key in shape.required)
    return hits / len(shape.required)


def to_record(item: Item, positive: str | None = None) -> tuple[Record, list[str]]:
    """Returns the record of one row and its extra keys. Raises BadRow with every reason."""
    value = item.value
    if isinstance(value, list):
        if len(value) != 3:
            raise BadRow(f"an array row must be [query, item, score]; this one has {len(value)} values")
        value = dict(zip(("query", "item", "score"), value))
    if not isinstance(value, dict):
        raise BadRow(f"a row must be an object or [query, item, score], not {kind(value)}")
    shape, row = recognise(value), Row(value, item.table)
    record = shape.build(row, positive)
    record.id = row.name("id")
    record.metadata = row.metadata()
    problems = row.found or record.problems() or (_no_text(record) if "\\u" in item.raw else [])
    if problems:
        raise BadRow("; ".join(problems))
    return record, row.extra


def _no_text(record: Record) -> list[str]:
    """Reports half of a surrogate pair, which UTF-8 cannot hold; only an escape ("\\ud83d") can produce one."""
    try:
        record.to_json().encode()
    except UnicodeEncodeError:
        return ["holds half of a surrogate pair (a cut emoji); mend the text"]
    return []


def source_names(paths: list[Path]) -> dict[Path, str]:
    """Names each input by its stem, or by folder and file if stems are equal."""
    resolved = [path.resolve() for path in paths]
    stems = [path.stem for path in resolved]
    names = {}
    for path, whole in zip(paths, resolved):
        names[path] = whole.stem if stems.count(whole.stem) == 1 else f"{whole.parent.name}/{whole.name}"
    if twice := sorted({str(path) for path in resolved if resolved.count(path) > 1}):
        raise BadInput([f"{path}: is given twice as an input" for path in twice])
    if len(set(names.values())) < len(paths):
        equal = "two inputs have the same file and folder name"
        raise BadInput(f"{equal}, so their rows could not be told apart; rename one")
    return names


@dataclass
class Notes:
    """Counts of one input, reported when it was read to the end."""

    rows: int = 0
    blank: int = 0  # lines without content
    extra: dict[str, None] = field(default_factory=dict)  # keys that became metadata, in order
    parts: dict[str, int] = field(default_factory=dict)  # rows by split
    whole: bool = True  # False: an error ended the reading

    def merge(self, later: "Notes") -> None:
        """Adds the counts of later rows of the same input."""
        self.rows += later.rows
        self.blank += later.blank
        self.extra.update(later.extra)
        for name, count in later.parts.items():
            self.parts[name] = self.parts.get(name, 0) + count
        self.whole &= later.whole

    def close(self, path: Path, problems: Problems) -> None:
        """Prints the notes on stderr; an input without rows is a problem."""
        if self.whole and not self.rows:
            problems.file(f"{path}: has no rows; it needs at least one")
        if self.parts:
            say(f"note: {path}: all splits are read: {', '.join(f'{name} ({n:,})' for name, n in self.parts.items())}")
        if self.extra:
            say(f"note: {path}: kept in metadata, as no shape has these keys: {', '.join(self.extra)}")
        if self.blank:
            say(f"note: {path}: {self.blank:,} blank lines hold no row")


def read_records(
    path: str | Path, *, positive: str | None = None, source: str | None = None, problems: Problems | None = None
) -> Iterator[Record]:
    """Streams the records of one input: .jsonl, .json (an array), .csv, .tsv, .parquet, or a `datasets` folder.

    positive: "answer" or "context", for chunk rows that have both. source: default of the rows' source (default: the
    file's stem); an id defaults to "<source>:<line>". Extra keys become metadata and are listed once on stderr. Bad
    rows and unreadable files go to `problems`; without it, BadInput with all of them is raised at the end.
    """
    path, notes = Path(path), Notes()
    collected = problems if problems is not None else Problems()
    yield from read_span(path, None, positive, source or path.resolve().stem, collected, notes)
    notes.close(path, collected)
    if problems is None:
        collected.check()


def read_span(
    path: Path, span: Span | None, positive: str | None, source: str, problems: Problems, notes: Notes
) -> Iterator[Record]:
    """Streams the records of some lines (None: all) of an input, like read_records; `notes` counts its rows."""
    try:
        for item in read_items(path, span):
            if isinstance(item, Blank):
                notes.blank += 1
                continue
            notes.rows += 1
            if isinstance(item, Problem):
                problems.row(item)
                continue
            try:
                record, more = to_record(item, positive)
            except BadRow as error:
                problems.row(Problem(str(path), item.line, str(error), item.raw), error.hint)
                continue
            notes.extra.update(dict.fromkeys(more))
            if item.part:
                notes.parts[item.part] = notes.parts.get(item.part, 0) + 1
            record.source = record.source or (f"{source}/{item.part}" if item.part else source)
            record.id = record.id or f"{record.source}:{item.line}"
            yield record
    except BadInput as error:
        notes.whole = False
        for message in error.problems:
            problems.file(message)
