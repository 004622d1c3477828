"""Shard folders in object stores: written on this machine, then uploaded, the manifest last.

- EMBEDFLEET_CACHE/uploads holds the folder until it is uploaded: the disk needs the room of a local output.
- Before any work the target is checked: nothing in it is lost unasked, and an object can be written.
- A folder whose upload was killed has no manifest and is refused by every reader; the next run replaces it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import cache_folder
from data_prep.remote.location import Location
from data_prep.shards.folder import KNOWN, MANIFEST

PROBE = ".embedfleet-write"  # an object that is written and deleted at once


@contextmanager
def uploaded(output: Location, overwrite: bool) -> Iterator[Path]:
    """Yields a local path for a shard folder; uploads the folder when the block succeeds.

    Raises BadInput if the target holds a finished folder without overwrite, or other objects; Failed if another run on
    this machine writes there, or the store does not take the files.
    """
    from filelock import FileLock, Timeout

    _check(output, overwrite)
    folder = cache_folder("uploads") / hashlib.sha256(str(output).encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Failed(f"--output {output}: another run on this machine writes there; wait for it") from None
    try:
        yield folder / output.name
        _upload(folder / output.name, output)
        shutil.rmtree(folder)
    finally:
        lock.release()


def _check(output: Location, overwrite: bool) -> None:
    names = output.sizes()
    strange = sorted(name for name in names if name.partition("/")[0] not in {*KNOWN, MANIFEST, PROBE})
    if "" in names:
        raise BadInput(f"--output {output}: is an object, not a folder; choose another name")
    if strange:
        raise BadInput(f"--output {output}: holds other objects, such as {strange[0]}; choose another folder")
    if MANIFEST in names and not overwrite:
        raise BadInput(f"--output {output}: is a finished shard folder; choose another folder or add --overwrite")
    if names and MANIFEST not in names:
        say(f"{output} is unfinished (no {MANIFEST}) and will be replaced")
    (output / PROBE).upload(b"1")
    (output / PROBE).delete()


def _upload(folder: Path, output: Location) -> None:
    say(f"{output}: uploading {folder}")
    manifest = (folder / MANIFEST).read_bytes()
    files = {entry["path"]: entry["bytes"] for entry in json.loads(manifest)["files"]}
    before = output.sizes()
    for name in sorted(before, key=lambda name: name != MANIFEST):  # without it the folder is unfinished
        if name == MANIFEST or name not in files:
            (output / name).delete()
    for name in track(files, f"uploading {output.name}"):
        (output / name).upload(folder / name)
    after = output.sizes()
    wrong = [name for name, size in files.items() if after.get(name) != size]
    if wrong:
        raise Failed(f"{output / wrong[0]}: has not the bytes that were uploaded; does another run write there?")
    (output / MANIFEST).upload(manifest)
    result(f"{output}: uploaded {len(files):,} files, {sum(files.values()):,} bytes")
