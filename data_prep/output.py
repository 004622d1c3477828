"""Output that is whole or absent: a temporary name, fsync, then one rename."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_prep.problems import BadInput


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


def check_output_file(output: Path, inputs: Iterable[Path] = (), suffix: str | tuple[str, ...] = ".jsonl") -> list[str]:
    """What is wrong with this output path, before any work is done. suffix: of the format, or formats, to write."""
    found, suffixes = [], (suffix,) if isinstance(suffix, str) else suffix
    if output.suffix not in suffixes:
        found.append(f"--output {output}: must end in {' or '.join(suffixes)}, the format that is written")
    if output.is_dir():
        found.append(f"--output {output}: is a folder; name a file in it")
    blocked = next((folder for folder in output.parents if folder.exists() and not folder.is_dir()), None)
    if blocked:
        found.append(f"--output {output}: {blocked} is a file, not a folder")
    rejected = rejected_name(output)
    for path in inputs:
        if same_path(path, output):
            found.append(f"--output {output}: is also an input; choose another name")
        if same_path(path, rejected):
            found.append(f"--output {output}: its rejected lines would replace the input {path}; choose another name")
    return found


def rejected_name(output: Path) -> Path:
    """Where the rejected lines of `--skip-bad` go: beside the output."""
    return output.with_name(f"{output.stem}.rejected.jsonl")


def same_path(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def check(found: list[str]) -> None:
    if found:
        raise BadInput(found)
