"""Reads the documents of a corpus from a file or a retrieval set."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import nearest
from data_prep.reading.files import Blank, Item, half_a_pair, read_items
from data_prep.reading.row import MISSING, kind
from data_prep.reading.row_problems import Problem, Problems
from data_prep.records import document_text, has_text
from data_prep.remote.location import Location, location
from data_prep.stores.base import Chunk

EXPECTED = '{"id", "title"?, "text"}'


def read_corpus(path: Path | Location, strict: bool = False) -> Iterator[Chunk]:
    """Streams the documents of a corpus file, or of a retrieval set's corpus.jsonl.

    A row has id or _id, text and perhaps title (JSONL, JSON, CSV, TSV, Parquet); other keys become metadata. Documents
    without text, which published sets have, are left out and counted. strict: they are bad rows. Raises BadInput with
    every bad row.
    """
    path = location(path)
    if path.is_dir() and (path / "corpus.jsonl").is_file():
        path = path / "corpus.jsonl"
    problems = Problems()
    rows = empty = first = 0
    for item in read_items(path):
        if isinstance(item, Blank):
            continue
        rows += 1
        document = item if isinstance(item, Problem) else _chunk(path, item)
        if isinstance(document, Problem):
            problems.row(document)
        elif not has_text(document.text) and strict:
            problems.row(Problem(str(path), item.line, "key 'text' is empty (refused by --strict)", item.raw))
        elif not has_text(document.text):
            empty, first = empty + 1, first or item.line
        else:
            yield document
    if not rows:
        problems.file(f"{path}: has no rows; it needs at least one")
    elif rows == empty:
        problems.file(f"{path}:{first}: key 'text' is empty, like those of all {rows:,} rows")
    problems.check()
    if empty:
        say(f"note: {path}:{first}: key 'text' is empty; {empty:,} documents without text are left out")


def _chunk(path: Path | Location, item: Item) -> Chunk | Problem:
    """Returns the document of a row, maybe without text."""

    def bad(reason: str) -> Problem:
        return Problem(str(path), item.line, reason, item.raw)

    if not isinstance(item.value, dict):
        return bad(f"a document must be an object like {EXPECTED}, not {kind(item.value)}")
    if reason := half_a_pair(item):
        return bad(reason)
    row = dict(item.value)
    text, title = row.pop("text", MISSING), row.pop("title", None)
    own, other = row.pop("id", None), row.pop("_id", None)
    if text is MISSING:
        return bad(f"key 'text' is missing; a document looks like {EXPECTED}.{nearest('text', row)}")
    text = "" if text is None else text
    if not isinstance(text, str) or not isinstance(title, str | None):
        key, value = ("text", text) if not isinstance(text, str) else ("title", title)
        return bad(f"key {key!r} must be a text, not {kind(value)}")
    full = document_text(title, text)
    identity = own if own is not None else other
    inner = row.pop("metadata", None)
    metadata = row | inner if isinstance(inner, dict) else row
    return Chunk("" if identity is None else str(identity), full, metadata)
