"""Reads files as a stream of rows with their line numbers: JSON, JSONL, CSV, TSV, Parquet and `datasets` folders."""

import codecs
import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from data_prep.common.errors import BadInput, KnownError, first_line
from data_prep.common.finite import check_whole
from data_prep.reading.opening import PIECE, check_readable, codec_of, damaged, format_of, open_bytes
from data_prep.reading.row_problems import Problem
from data_prep.remote.copies import local
from data_prep.remote.location import Location

TABLE_BATCH = 1000
ALL = 1 << 62  # bytes: more than any file has


class Item(NamedTuple):
    """A row as it was read."""

    line: int
    value: Any
    raw: str
    table: bool = False  # cells may be empty (CSV, Parquet): null means absent
    part: str = ""  # split, if the input has several


def half_a_pair(item: Item) -> str | None:
    """Returns the problem of a row with half of a surrogate pair, which only an escape ("\\ud83d") can produce."""
    if "\\u" in item.raw:
        try:
            check_whole(item.value)
        except ValueError as error:
            return f"{error}; mend the text"
    return None


class Blank(NamedTuple):
    """A line without content; counted, not a row."""

    line: int


class Span(NamedTuple):
    """Whole lines of a JSONL file, or whole row groups of a Parquet file."""

    start: int  # byte offsets, or numbers of row groups
    stop: int
    line: int  # number of the first line or row
    end: int  # where the last span of the file stops


def read_items(path: Path | Location, span: Span | None = None) -> Iterator[Item | Problem | Blank]:
    """Streams an input's rows, or those of a span; a bad one as a Problem. BadInput: the rest is unreadable."""
    if span is None:
        check_readable(path)
    if path.is_dir():
        yield from _read_datasets_folder(local(path))
        return
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv}
    yield from (readers | {".parquet": _read_parquet})[format_of(path)](path, span)


def spans(path: Path | Location, size: int) -> Iterator[Span | None]:
    """Cuts an input into spans of about `size` bytes. A format that cannot be cut is one, None."""
    check_readable(path)
    if path.is_dir() or codec_of(path) or format_of(path) not in (".jsonl", ".parquet"):
        yield None
    elif format_of(path) == ".parquet":
        yield from _row_groups(path, size)
    else:
        start, line, rest = 0, 1, b""
        with open_bytes(path) as handle:
            end = handle.seek(0, os.SEEK_END)
            handle.seek(0)
            while block := rest + handle.read(max(0, size - len(rest))):
                block, rest = to_line_end(handle, block)
                yield Span(start, start + len(block), line, end)
                start, line = start + len(block), line + line_ends(block)


def _text_lines(path: Path | Location) -> Iterator[str]:
    """Streams lines with their ends (\\n, \\r\\n or \\r). Bytes outside UTF-8 become lone surrogates."""
    number = 0
    try:
        with io.TextIOWrapper(open_bytes(path), "utf-8", "surrogateescape", newline="") as handle:
            for number, line in enumerate(handle, 1):
                yield line.removeprefix("\ufeff") if number == 1 else line
    except OSError as error:
        raise damaged(path, error, number) from None


def _no_utf8(text: str) -> str | None:
    """Returns the problem if this text came from bytes outside UTF-8."""
    bad = None if text.isascii() else next((i for i, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if bad is None:
        return None
    return f"is not valid UTF-8: byte 0x{ord(text[bad]) - 0xDC00:02x} at character {bad + 1}; save the file as UTF-8"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice")  # plain JSON readers keep the last one silently
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; leave the key out or write null")


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _why_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON: {error.msg} at column {error.colno}"
    return f"invalid JSON: {'nested too deep' if isinstance(error, RecursionError) else error}"


def _read_jsonl(path: Path | Location, span: Span | None) -> Iterator[Item | Problem | Blank]:
    start, stop, number = span[:3] if span else (0, ALL, 1)
    try:
        with open_bytes(path) as handle:
            if start:
                handle.seek(start)
            at = start
            for line in _lines(handle, stop - start):
                text = line if at else line.removeprefix(codecs.BOM_UTF8)
                at += len(line)
                if b"\r" in (text := text.rstrip(b"\r\n")):
                    yield from _rows_between_returns(path, number, text)
                else:
                    yield _json_row(path, number, text)
                number += line_ends(line)
    except OSError as error:
        raise damaged(path, error, number - 1) from None


def _lines(handle: IO[bytes], left: int) -> Iterator[bytes]:
    """Yields the lines of the next `left` bytes; lines that end with \\r, as on old Macs, come many at a time."""
    rest = b""
    while block := rest + handle.read(min(PIECE, left)):
        before = len(rest)
        whole, rest = to_line_end(handle, block, left - (len(block) - before))
        left -= len(whole) + len(rest) - before
        *lines, last = whole.split(b"\n")
        yield from (line + b"\n" for line in lines)
        if last:
            yield last


def to_line_end(handle: IO[bytes], block: bytes, most: int = ALL) -> tuple[bytes, bytes]:
    """Returns the block up to the end of its last line, of which `most` more bytes may be read, and the bytes after it.

    A line of more than PIECE bytes ends at a \\r, if it has one, so that the file of an old Mac is not read whole.
    """
    start = block.rfind(b"\n") + 1
    while most > 0 and not block.endswith(b"\n"):
        if len(block) - start >= PIECE and (end := block.rfind(b"\r", start, -1) + 1):  # \r\n may be cut
            return block[:end], block[end:]
        piece = handle.readline(min(PIECE, most))
        if not piece:
            break
        most -= len(piece)
        block += piece
    return block, b""


def line_ends(block: bytes) -> int:
    """Counts the line ends of a block that is not cut within one: \\n, \\r\\n, and the \\r of old Macs."""
    returns = block.count(b"\r")
    return block.count(b"\n") + (returns - block.count(b"\r\n") if returns else 0)


def _rows_between_returns(path: Path | Location, number: int, text: bytes) -> Iterator[Item | Problem | Blank]:
    """Yields the rows of a text whose lines end with \\r; one row, if the \\r are mere white space in it."""
    whole = _json_row(path, number, text)
    lines = [_json_row(path, number + i, line) for i, line in enumerate(text.split(b"\r"))]
    rows = any(isinstance(line, Item) for line in lines)
    yield from lines if isinstance(whole, Problem) and rows else [whole]


def _json_row(path: Path | Location, number: int, line: bytes) -> Item | Problem | Blank:
    with contextlib.suppress(ValueError):
        return Item(number, decode_fast(line), line.decode())
    raw = line.decode(errors="surrogateescape")
    if not raw.strip():
        return Blank(number)
    reason = _no_utf8(raw)
    if reason is None:
        try:
            return Item(number, DECODER.decode(raw), raw)
        except (ValueError, RecursionError) as error:
            reason = _why_json(error)
    return Problem(str(path), number, reason, raw)


def decode_fast(line: bytes) -> Any:
    """Decodes JSON like DECODER, several times as fast. Raises ValueError if only DECODER can decide.

    orjson silently keeps the last of two equal keys, and turns integers beyond 64 bits into floats. A dropped key shows
    in the number of quotation marks: two for each text that was kept, and those within texts.
    """
    value = orjson.loads(line)
    texts = quotes = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            texts += 1
            quotes += item.count('"')
        elif type(item) is dict:
            waiting += item
            waiting += item.values()
        elif type(item) is list:
            waiting += item
        elif type(item) is float and abs(item) >= 2**63:
            raise ValueError("perhaps an integer")
    if line.count(b'"') != 2 * texts + quotes or (quotes and b"\\u0022" in line):
        raise ValueError("perhaps a key that stands twice")
    return value


def _read_json(path: Path | Location, _: None) -> Iterator[Item]:
    """Streams an array of rows. The whole text is in memory, unlike JSONL."""
    # a line end is no part of a JSON text, so that one kind of it is enough to count lines
    text = "".join(line.rstrip("\r\n") + "\n" if line[-1:] in "\r\n" else line for line in _text_lines(path))
    if reason := _no_utf8(text):
        raise BadInput(f"{path}: {reason}")
    mend = "a .json file holds one array of rows; name a file with one row per line .jsonl"
    at, line = _skip(text, 0, 1)
    if text[at : at + 1] != "[":
        raise BadInput(f"{path}:{line}: does not start with '['; {mend}")
    at, line = _skip(text, at + 1, line)
    first = True
    while text[at : at + 1] != "]":
        if not first:
            if text[at : at + 1] != ",":
                raise BadInput(f"{path}:{line}: invalid JSON: expected ',' or ']' after a row; {mend}")
            at, line = _skip(text, at + 1, line)
        first = False
        try:
            value, end = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = text.count("\n", 0, error.pos) + 1 if isinstance(error, json.JSONDecodeError) else line
            raise BadInput(f"{path}:{where}: {_why_json(error)}; the rest of the array cannot be read") from None
        yield Item(line, value, text[at:end])
        at, line = _skip(text, end, line + text.count("\n", at, end))
    if text[at + 1 :].strip():
        raise BadInput(f"{path}:{line}: text after the end of the array; {mend}")


def _skip(text: str, at: int, line: int) -> tuple[int, int]:
    """Returns position and line of the next character that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        line += text[at] == "\n"
        at += 1
    return at, line


def _read_csv(path: Path | Location, _: None) -> Iterator[Item | Problem | Blank]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than real texts
    comma = "\t" if format_of(path) == ".tsv" else ","
    rows = csv.reader(_text_lines(path), delimiter=comma, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in rows:
            line, start = start, rows.line_num + 1
            raw = comma.join(cells)
            if not any(cell.strip() for cell in cells):
                yield Blank(line)
            elif header is None:
                header = _header(path, line, cells, comma)
            elif len(cells) != len(header):
                reason = f"{len(cells)} cells where the header names {len(header)} columns"
                yield Problem(str(path), line, f"{reason}; quote a text that holds the separator", raw)
            elif reason := _no_utf8(raw):
                yield Problem(str(path), line, reason, raw)
            else:
                yield Item(line, _csv_row(header, cells), raw, table=True)
    except csv.Error as error:
        mend = "close the quote, or double a quote inside a text"
        raise BadInput(f"{path}:{start}: {error}; {mend}; the rest of the file cannot be read") from None


def _header(path: Path | Location, line: int, cells: list[str], comma: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if reason := _no_utf8(comma.join(names)):
        raise BadInput(f"{path}:{line}: {reason}")
    if "" in names:
        raise BadInput(f"{path}:{line}: column {names.index('') + 1} of the header has no name; name every column")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{path}:{line}: the header names column {twice[0]!r} twice")
    if len(names) == 1:
        other = next((mark for mark in (";", "\t", ",", "|") if mark in names[0]), None)
        seen = f"columns seem to be separated by {other!r}" if other else f"the only column is {names[0]!r}"
        raise BadInput(f"{path}:{line}: {seen}; a {format_of(path)} needs columns separated by {comma!r}")
    return names


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Builds a row: empty cells become null, and `score` a number if it is one (else the row check reports it)."""
    row: dict[str, Any] = {name: cell if cell.strip() else None for name, cell in zip(header, cells)}
    if row.get("score") is not None:
        with contextlib.suppress(ValueError):
            row["score"] = float(row["score"])
    return row


def _read_parquet(path: Path | Location, span: Span | None) -> Iterator[Item]:
    with _parquet(path) as file:
        start, stop, line = span[:3] if span else (0, file.num_row_groups, 1)
        groups = list(range(start, stop))
        yield from _table_items(file.iter_batches(TABLE_BATCH, row_groups=groups), line=line - 1)


def _row_groups(path: Path | Location, size: int) -> Iterator[Span | None]:
    """Cuts a Parquet file into whole row groups that hold about `size` bytes, unpacked, or one that holds more."""
    with _parquet(path) as file:
        if not file.num_row_groups:
            yield None
        start, line, waiting, rows = 0, 1, 0, 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            waiting, rows = waiting + group.total_byte_size, rows + group.num_rows
            if waiting >= size or number == file.num_row_groups - 1:
                yield Span(start, number + 1, line, file.num_row_groups)
                start, line, waiting, rows = number + 1, line + rows, 0, 0


@contextlib.contextmanager
def _parquet(path: Path | Location) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with (
        _readable(path, "is not a readable Parquet file"),
        pq.ParquetFile(path if isinstance(path, Path) else path.open_file()) as file,
    ):
        yield file


@contextlib.contextmanager
def _readable(path: Path | Location, problem: str) -> Iterator[None]:
    """A block in which a library reads a table. BadInput for any error of its own: a damaged file causes nearly each
    kind."""
    try:
        yield
    except KnownError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise BadInput(f"{path}: {problem}: {reason}") from None


def _table_items(batches, part: str = "", line: int = 0) -> Iterator[Item]:
    for batch in batches:
        for row in batch.to_pylist():
            line += 1
            # pandas writes a missing text as NaN
            row = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
            yield Item(line, row, json.dumps(row, ensure_ascii=False, default=str), table=True, part=part)


def _read_datasets_folder(path: Path) -> Iterator[Item]:
    from data_prep.shards.folder import open_shards
    from data_prep.shards.target import looks_unfinished

    if (path / "manifest.json").exists():
        open_shards(path)  # refuses a damaged one
    elif looks_unfinished(path):
        raise BadInput(
            f"{path}: looks like a shard folder but has no manifest.json, so it is unfinished or a partial copy; "
            f"run shard again, or name one split ({path / 'train'}) to read it as plain rows"
        )
    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        lacking = "no dataset_dict.json or state.json"
        raise BadInput(f"{path}: is a folder that `datasets` did not write ({lacking}); name a file in it")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import datasets

    with _readable(path, "`datasets` cannot load this folder"):
        data = datasets.load_from_disk(str(path))
        splits = data if isinstance(data, dict) else {"": data}
        for name, split in splits.items():
            yield from _table_items(split.with_format("arrow").iter(TABLE_BATCH), part=str(name))
