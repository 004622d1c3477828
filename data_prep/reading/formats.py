"""Turns every accepted shape of a row, recognised by its keys, into a Record."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.common.console import say
from data_prep.common.errors import BadInput, nearest
from data_prep.common.finite import check_whole
from data_prep.reading.files import Blank, Item, Span, read_items
from data_prep.reading.opening import stem_of
from data_prep.reading.row import Row, kind, list_in_cell
from data_prep.reading.row_problems import BadRow, Problem, Problems
from data_prep.reading.supervision import read_supervision
from data_prep.records import Record
from data_prep.remote.location import Location, location


def _own(row: Row, _: str | None) -> Record:
    query, positives = row.text("query"), row.texts("positives", required=True)
    negatives, score, teacher = row.texts("negatives"), row.score(), row.take("teacher_scores", required=False)
    if teacher is not None:
        teacher = list_in_cell(teacher) if row.table and isinstance(teacher, str) else teacher
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
    """Builds records from these two keys; other spellings of negatives follow (supervision.py)."""
    return lambda row, _: Record(row.text(query), row.one_or_more(positive), row.texts("hard_negatives"))


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
    Shape(("query", "positive"), '{"query", "positive", "negative"?} (or "negative_1", …)', _pair("query", "positive")),
    Shape(("question", "answer"), '{"question", "answer"}', _pair("question", "answer")),
    Shape(("query", "pos"), '{"query", "pos": […], "neg": […]}', _lists),
    Shape(("query", "item", "score"), '[query, item, score] or {"query", "item", "score"}, score in 0..1', _scored),
    Shape(("term", "definition"), '{"term", "definition"} (glossary)', _glossary),
)
ACCEPTED = " | ".join(shape.example for shape in SHAPES) + ". CSV, TSV and Parquet name the same keys as columns."


FOREIGN = 0.3  # likeness below which no shape is near


class UnknownShape(BadRow):
    """A row whose keys are none of the accepted shapes."""

    hint = f"accepted rows: {ACCEPTED} Other names: --columns query=sentence1,positive=sentence2 renames keys."


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
    if _likeness(best, keys) < FOREIGN:
        raise UnknownShape(_of_foreign(keys))
    lacking = [key for key in best.required if key not in values]
    hints = [(key, nearest(key, [k for k in keys if k not in best.required])) for key in lacking]
    missing = ", ".join(f"key {key!r} is missing" + (f" ({hint.strip()})" if hint else "") for key, hint in hints)
    shown = ", ".join(map(repr, keys[:12]))
    raise UnknownShape(f"unknown shape with keys {shown}; nearest is {best.example}: {missing}")


def _of_foreign(keys: list[str]) -> str:
    """Returns the problem of a row whose keys resemble those of no shape."""
    shown = ", ".join(map(repr, keys[:12]))
    if len(keys) == 1:
        return f"the row has one key, {shown}; a pair needs a query and a text that answers it"
    return f"keys {shown} fit no accepted row; rename two, such as --columns query={keys[0]},positive={keys[1]}"


@lru_cache
def _fitting(keys: tuple[str, ...]) -> list[Shape]:
    """Returns the shapes whose keys are all present, without those whose keys are a part of another one's."""
    fitting = [shape for shape in SHAPES if set(shape.required) <= set(keys)]
    return [s for s in fitting if not any(set(s.required) < set(other.required) for other in fitting)]


def _likeness(shape: Shape, keys: list[str]) -> float:
    """Returns the share of the shape's keys that the row has; a near miss counts half."""
    hits = sum(1.0 if key in keys else 0.5 if nearest(key, keys) else 0.0 for key in shape.required)
    return hits / len(shape.required)


def to_record(
    item: Item, positive: str | None = None, columns: dict[str, str] | None = None
) -> tuple[Record, list[str]]:
    """Returns the record of one row and its extra keys. Raises BadRow with every reason. columns: see read_records."""
    value = item.value
    if isinstance(value, list):
        if len(value) != 3:
            raise BadRow(f"an array row must be [query, item, score]; this one has {len(value)} values")
        value = dict(zip(("query", "item", "score"), value))
    if not isinstance(value, dict):
        raise BadRow(f"a row must be an object or [query, item, score], not {kind(value)}")
    value = _renamed(value, columns) if columns else value
    shape, row = recognise(value), Row(value, item.table)
    record = shape.build(row, positive)
    record.id = row.name("id")
    read_supervision(row, record, own=shape.build is _own)
    record.metadata = row.metadata()
    problems = row.found or record.problems() or (_no_text(record) if "\\u" in item.raw else [])
    if problems:
        raise BadRow("; ".join(problems))
    return record, row.extra


def _renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Returns the row with new names of its keys. Raises BadRow for two values under one name."""
    renamed = {columns.get(key, key): value for key, value in values.items()}
    if len(renamed) < len(values):
        twice = [f"{new}={old}" for old, new in columns.items() if new in values and old in values]
        raise BadRow(f"--columns {','.join(twice)}: the row has that new name too; rename it as well")
    return renamed


def _no_text(record: Record) -> list[str]:
    """Reports half of a surrogate pair, which UTF-8 cannot hold; only an escape ("\\ud83d") can produce one."""
    try:
        check_whole(record.to_json())
    except ValueError as error:
        return [f"{error}; mend the text"]
    return []


def source_names(paths: list[Path | Location]) -> dict[Path | Location, str]:
    """Names each input by its stem, or by folder and file if stems are equal."""
    resolved = [path.resolve() for path in paths]
    stems = [stem_of(path) for path in resolved]
    names = {}
    for path, whole in zip(paths, resolved):
        names[path] = stem_of(whole) if stems.count(stem_of(whole)) == 1 else f"{whole.parent.name}/{whole.name}"
    if twice := sorted({str(path) for path in resolved if resolved.count(path) > 1}):
        raise BadInput([f"{path}: is given twice as an input" for path in twice])
    if len(set(names.values())) < len(paths):
        equal = "two inputs have the same file and folder name"
        raise BadInput(f"{equal}, so their rows would get the same source name; rename one")
    return names


@dataclass
class Notes:
    """Counts of one input, reported when it was read to the end."""

    rows: int = 0
    blank: int = 0  # lines without content
    extra: dict[str, None] = field(default_factory=dict)  # keys that became metadata, in order
    parts: dict[str, int] = field(default_factory=dict)  # rows by split
    renamed: set[str] = field(default_factory=set)  # keys that --columns names and a row has
    whole: bool = True  # False: an error ended the reading

    def merge(self, later: "Notes") -> None:
        """Adds the counts of later rows of the same input."""
        self.rows += later.rows
        self.blank += later.blank
        self.extra.update(later.extra)
        self.renamed |= later.renamed
        for name, count in later.parts.items():
            self.parts[name] = self.parts.get(name, 0) + count
        self.whole &= later.whole

    def close(self, path: Path | Location, problems: Problems, columns: dict[str, str] | None = None) -> None:
        """Prints the notes on stderr; an input without rows is a problem."""
        if absent := [old for old in columns or () if old not in self.renamed]:
            say(f"note: {path}: --columns: no row has {', '.join(map(repr, absent))}")
        if self.whole and not self.rows:
            problems.file(f"{path}: has no rows; it needs at least one")
        if self.parts:
            say(f"note: {path}: all splits are read: {', '.join(f'{name} ({n:,})' for name, n in self.parts.items())}")
        if self.extra:
            say(f"note: {path}: keys that are not used stay in metadata: {', '.join(self.extra)}")
        if self.blank:
            say(f"note: {path}: {self.blank:,} blank lines hold no row")


def read_records(
    path: str | Path | Location,
    *,
    positive: str | None = None,
    columns: dict[str, str] | None = None,
    source: str | None = None,
    problems: Problems | None = None,
) -> Iterator[Record]:
    """Streams the records of one input, see reading/files.py, at a path or URL.

    positive: "answer" or "context", for chunk rows that have both. columns: key of the input -> the name it is read
    under. source: default of the rows' source (default: the file's stem); an id defaults to "<source>:<line>". Extra
    keys become metadata and are listed once on stderr. Bad rows and unreadable files go to `problems`; without it,
    BadInput with all of them is raised at the end.
    """
    path, notes = location(path), Notes()
    collected = problems if problems is not None else Problems()
    yield from read_span(path, None, positive, source or stem_of(path.resolve()), collected, notes, columns)
    notes.close(path, collected, columns)
    if problems is None:
        collected.check()


def read_span(
    path: Path | Location,
    span: Span | None,
    positive: str | None,
    source: str,
    problems: Problems,
    notes: Notes,
    columns: dict[str, str] | None = None,
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
            if columns and isinstance(item.value, dict):
                notes.renamed |= columns.keys() & item.value.keys()
            try:
                record, more = to_record(item, positive, columns)
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
