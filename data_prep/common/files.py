"""Files: output that is whole or absent (temporary name, fsync, one rename), cache folders, hashes, path checks."""

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.common.errors import BadInput, Failed
from data_prep.common.paths import expanded
from data_prep.common.sole_writer import sole_writer

# what readers of folders read: retrieval sets, shards, folders of `datasets`
_READ_SUFFIXES = {".arrow", ".tsv"}
_READ_STEMS = {"corpus", "queries", "manifest", "dataset_dict", "dataset_info", "state"}


def unfinished_name(path: Path) -> Path:
    """Returns the hidden sibling that holds an output until it is whole: always the same name."""
    return path.with_name(f".{path.name}.unfinished")


def fsync_folder(folder: Path) -> None:
    """Makes renames and new names in the folder survive a power cut. No effect on Windows, which opens no folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def written_aside(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yields the name of a hidden sibling, which becomes `path` if the block succeeds, and is removed if it does not.
    Creates the parent folder. Nothing is fsynced. mode: of a new file, before the umask. Failed: another process writes
    there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished_name(path)
    with sole_writer(part, path, mode):
        yield part
        os.replace(part, path)


@contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[IO[str]]:
    """Yields a UTF-8 text file that appears under `path` only if the block succeeds. mode, errors: of written_aside."""
    with written_aside(path, mode) as part, open(part, "w", encoding="utf-8", newline="\n") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    fsync_folder(path.parent)


@contextmanager
def named_when_whole(path: Path, folder: Path) -> Iterator[Path]:
    """Yields a name of its own in `folder`, which becomes `path` if the block succeeds: for tasks that may run twice.

    A task that is killed leaves its file in the folder, which is one to be deleted. Not fsynced.
    """
    part = folder / f"{path.name}.{os.urandom(6).hex()}"
    yield part
    os.replace(part, path)


@contextmanager
def spool_beside(path: Path) -> Iterator[IO[str]]:
    """Yields a nameless temporary text file on the disk of `path`, for rows that wait until all are read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=path.parent) as handle:
        yield handle


def check_output_file(
    output: Path, inputs: Iterable[Any] = (), suffix: str | tuple[str, ...] = ".jsonl", flag: str = "--output"
) -> list[str]:
    """Returns the problems of an output path, before any work is done.

    inputs: all that is read, files and folders; those in an object store cannot be replaced. suffix: of the format, or
    formats, to write.
    """
    problems, suffixes = [], (suffix,) if isinstance(suffix, str) else suffix
    if output.suffix not in suffixes:
        problems.append(f"{flag} {output}: must end in {' or '.join(suffixes)}, the format that is written")
    if output.is_dir():
        problems.append(f"{flag} {output}: is a folder; name a file in it")
    blocked = next((folder for folder in output.parents if folder.exists() and not folder.is_dir()), None)
    if blocked:
        problems.append(f"{flag} {output}: {blocked} is a file, not a folder")
    rejected = rejected_name(output)
    for path in inputs:
        if not isinstance(path, Path):
            continue
        if same_path(path, output):
            problems.append(f"{flag} {output}: is also an input; choose another name")
        elif _is_file_in(output, path):
            problems.append(f"{flag} {output}: would replace a file of the input {path}; choose another name")
        if same_path(path, rejected):
            fate = f"its rejected lines would replace the input {path}"
            problems.append(f"{flag} {output}: {fate}; choose another name")
    return problems


def _is_file_in(file: Path, folder: Path) -> bool:
    """Returns True for a file, or a link to one, that exists in a folder, and that readers of folders read."""
    named = file.resolve()
    is_read = named.suffix in _READ_SUFFIXES or named.stem in _READ_STEMS
    return is_read and folder.is_dir() and file.exists() and is_within(file.parent, folder)


def existing_parent(path: Path) -> Path:
    """Returns the path itself or its nearest parent that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def rejected_name(output: Path) -> Path:
    """Returns the file for rejected lines: beside the output, and of no other output there."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.rejected.jsonl")


def same_path(one: Path, other: Path) -> bool:
    """Returns True for two names of one file: also by links, a second mount, or a disk that takes A for a."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist
        return one.resolve() == other.resolve()


def is_within(path: Path, folder: Path) -> bool:
    """Returns True for the folder itself, and for every path below it."""
    path = path.resolve()
    return any(same_path(parent, folder) for parent in (path, *path.parents))


def check(problems: list[str]) -> None:
    if problems:
        raise BadInput(problems)


def cache_folder(name: str) -> Path:
    """Returns the folder of one cache: below EMBEDFLEET_CACHE, else below embedfleet/ in XDG_CACHE_HOME or ~/.cache."""
    own, shared = os.environ.get("EMBEDFLEET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    own = own and expanded(own)
    try:
        blocked = own and not existing_parent(Path(own)).is_dir()
    except OSError as error:  # a name that is too long
        raise BadInput(f"EMBEDFLEET_CACHE={own[:80]}: no folder can have this name ({error.strerror})") from None
    if blocked:
        raise BadInput(f"EMBEDFLEET_CACHE={own}: {existing_parent(Path(own))} is a file; name a folder")
    try:
        return Path(own or Path(expanded(shared) if shared else Path.home() / ".cache", "embedfleet"), name)
    except RuntimeError:  # no HOME, and the user has no entry in the system's list
        raise BadInput("HOME: is not set, and caches go below it; set it, or EMBEDFLEET_CACHE to a folder") from None


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """A block that fills the folder of a cache: a full disk, or an error of a file in it, is Failed with the mend."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        ours = is_within(Path(error.filename), folder) if error.filename else full
        if error.errno is None or not ours:
            raise
        mend = "make room, or name a folder on another disk by EMBEDFLEET_CACHE" if full else "see EMBEDFLEET_CACHE"
        raise Failed(f"{error.filename or folder}: {os.strerror(error.errno)}; {mend}") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A block of writes to a file; the system's error to one does not say to which."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class HashedFile(io.BufferedIOBase):
    """A new file whose bytes are hashed as they are written. `close` fsyncs it."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self._hash = hashlib.sha256()
        self._handle = open(path, "wb")  # noqa: SIM115 (closed by `close`)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _named(self.path):
            written = self._handle.write(data)
        self._hash.update(data)
        self.size += written
        return written

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _named(self.path), self._handle:
                self._handle.flush()
                os.fsync(self._handle.fileno())

    def entry(self, root: Path) -> dict[str, Any]:
        """Returns the manifest entry of the closed file."""
        return {"path": self.path.relative_to(root).as_posix(), "bytes": self.size, "sha256": self._hash.hexdigest()}


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Writes the file whole or not at all, so that a reader never sees half of it."""
    with whole_file(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")
