"""Output that is whole or absent: a temporary name, fsync, then one rename."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.common.errors import BadInput


def unfinished_name(path: Path) -> Path:
    """The hidden sibling that holds an output until it is whole; the same each time, so a killed run leaves one."""
    return path.with_name(f".{path.name}.unfinished")


def fsync_folder(folder: Path) -> None:
    """Makes renames and new names in the folder survive a power cut (where folders can be opened: not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that appears under `path` only when the block ends well; its parent folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished_name(path)
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextmanager
def spool_beside(path: Path) -> Iterator[IO[str]]:
    """A nameless text file on the disk of `path`, for rows that wait until all are read; gone when the block ends, or
    the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=path.parent) as handle:
        yield handle


def check_output_file(
    output: Path, inputs: Iterable[Path] = (), suffix: str | tuple[str, ...] = ".jsonl", flag: str = "--output"
) -> list[str]:
    """What is wrong with this output path, before any work is done. suffix: of the format, or formats, to write; flag:
    what named the path."""
    found, suffixes = [], (suffix,) if isinstance(suffix, str) else suffix
    if output.suffix not in suffixes:
        found.append(f"{flag} {output}: must end in {' or '.join(suffixes)}, the format that is written")
    if output.is_dir():
        found.append(f"{flag} {output}: is a folder; name a file in it")
    blocked = next((folder for folder in output.parents if folder.exists() and not folder.is_dir()), None)
    if blocked:
        found.append(f"{flag} {output}: {blocked} is a file, not a folder")
    rejected = rejected_name(output)
    for path in inputs:
        if same_path(path, output):
            found.append(f"{flag} {output}: is also an input; choose another name")
        if same_path(path, rejected):
            found.append(f"--output {output}: its rejected lines would replace the input {path}; choose another name")
    return found


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def rejected_name(output: Path) -> Path:
    """Where the rejected lines of `--skip-bad` go: beside the output."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def same_path(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def check(found: list[str]) -> None:
    if found:
        raise BadInput(found)


class HashedFile(io.BufferedIOBase):
    """A new file whose bytes are hashed as they are written; on the disk when it is closed."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self._hash = hashlib.sha256()
        self._handle = open(path, "wb")  # noqa: SIM115 (closed by `close`)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = self._handle.write(data)
        self._hash.update(data)
        self.size += written
        return written

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()

    def entry(self, root: Path) -> dict[str, Any]:
        """What a manifest says of the closed file."""
        return {"path": self.path.relative_to(root).as_posix(), "bytes": self.size, "sha256": self._hash.hexdigest()}


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all, so that a reader never sees half a file."""
    with whole_file(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
