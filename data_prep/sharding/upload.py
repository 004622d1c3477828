"""Shard folders in object stores: written on this machine, then uploaded, the manifest last.

- EMBEDFLEET_CACHE/uploads holds the folder until it is uploaded: the disk needs the room of a local output.
- Before any work the target is checked: nothing in it is lost unasked, and an object can be written. Only objects that
  the check saw are deleted.
- A folder whose upload was killed has no manifest and is refused by every reader; the next run replaces it. The files
  that show whose it is (SIGNS) are uploaded first.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.common.console import result, say, track
from data_prep.common.errors import Failed
from data_prep.common.files import cache_errors, cache_folder, check
from data_prep.remote.location import Location
from data_prep.shards.folder import MANIFEST
from data_prep.shards.target import SIGNS, overlaps, problem_of

PROBE = ".embedfleet-write"  # an object that is written and deleted at once


@contextmanager
def uploaded(inputs: Iterable[Path | Location], output: Location, overwrite: bool) -> Iterator[Path]:
    """Yields a local path for a shard folder; uploads the folder when the block succeeds.

    Raises BadInput if the target holds a finished folder without overwrite, other objects, or an input; Failed if
    another run writes there, or the store does not take the files.
    """
    seen = _check(inputs, output, overwrite)
    cache = cache_folder("uploads")
    folder = cache / hashlib.sha256(str(output).encode()).hexdigest()[:32]
    with cache_errors(cache), _alone(folder, output):
        yield folder / output.name
        _upload(folder / output.name, output, seen)
        shutil.rmtree(folder)


@contextmanager
def _alone(folder: Path, output: Location) -> Iterator[None]:
    """A block in which no other run on this machine writes the folder, which is made, for this output."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Failed(f"--output {output}: another run on this machine writes there; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _check(inputs: Iterable[Path | Location], output: Location, overwrite: bool) -> set[str]:
    """Returns the names of the objects that the folder replaces."""
    problems = overlaps(inputs, output)
    names = set(output.sizes()) - {PROBE}
    if "" in names:
        problems.append(f"--output {output}: is an object, not a folder; choose another name")
    elif problem := problem_of(output, names, overwrite):
        problems.append(f"--output {output}: {problem}")
    check(problems)
    if names and MANIFEST not in names:
        say(f"{output} is unfinished (no {MANIFEST}) and will be replaced")
    (output / PROBE).upload(b"1")
    (output / PROBE).delete()
    return names


def _upload(folder: Path, output: Location, seen: set[str]) -> None:
    """Uploads the folder in place of the objects with the names `seen`."""
    say(f"{output}: uploading {folder}")
    manifest = (folder / MANIFEST).read_bytes()
    files = {entry["path"]: entry["bytes"] for entry in json.loads(manifest)["files"]}
    there = set(output.sizes())
    if new := sorted((there - seen) & {*files, MANIFEST}):
        theirs = "appeared while this run worked, and is kept; does another run write there?"
        raise Failed(f"{output / new[0]}: {theirs} The folder of this run is {folder}")
    stale = (seen & there) - files.keys()
    for name in sorted(stale, key=lambda name: name != MANIFEST):  # without it the folder is unfinished
        (output / name).delete()
    for name in track(sorted(files, key=lambda name: name not in SIGNS), f"uploading {output.name}"):
        (output / name).upload(folder / name)
    after = output.sizes()
    wrong = [name for name, size in files.items() if after.get(name) != size]
    if wrong:
        raise Failed(f"{output / wrong[0]}: has not the bytes that were uploaded; does another run write there?")
    (output / MANIFEST).upload(manifest)
    result(f"{output}: uploaded {len(files):,} files, {sum(files.values()):,} bytes")
