"""Local copies of shard folders in object stores: one per node, whole and verified by the manifest's hashes.

- EMBEDFLEET_CACHE/shards/<hash of the manifest> holds one copy: the same manifest is the same rows.
- The first process of a node fetches it, the others wait for its lock. Files that are whole are kept when a fetch is
  interrupted; the manifest is written last.
- The files are verified as they come. Opening the copy later compares sizes, as for any shard folder.
"""

import hashlib
from pathlib import Path
from typing import Any

from data_prep.common.console import say, track
from data_prep.common.errors import BadInput, collect
from data_prep.common.files import HashedFile, cache_errors, cache_folder, whole_file, written_aside
from data_prep.common.finite import decode_json
from data_prep.remote.location import PIECE, Location, location

MANIFEST = "manifest.json"  # of a shard folder: the last file that is written


def local(path: str | Path | Location) -> Path:
    """Returns the path itself, or the local copy of a shard folder at a URL. Raises BadInput, Failed."""
    place = location(path)
    return place if isinstance(place, Path) else _copy(place)


def _copy(folder: Location) -> Path:
    from filelock import FileLock

    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{folder}: has no {MANIFEST}, so it is no shard folder, or one whose upload did not end; run shard again, "
            "or name the files in it"
        )
    manifest = (folder / MANIFEST).read()
    cache = cache_folder("shards")
    copy = cache / hashlib.sha256(manifest).hexdigest()[:32]
    with cache_errors(cache):
        copy.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(copy.with_suffix(".lock")):
            if not (copy / MANIFEST).exists():
                _fetch(folder, copy, manifest)
    return copy


def _fetch(folder: Location, copy: Path, manifest: bytes) -> None:
    files = _entries(folder, manifest)
    say(f"{folder}: fetching {sum(entry['bytes'] for entry in files):,} bytes once for this machine, to {copy}")
    problems = []
    for entry in track(files, f"fetching {folder.name}"):
        if not (copy / entry["path"]).exists():
            collect(problems, _fetch_file, folder, copy, entry)
    if problems:
        raise BadInput(problems)
    with whole_file(copy / MANIFEST) as file:
        file.write(manifest.decode())


def _entries(folder: Location, manifest: bytes) -> list[dict[str, Any]]:
    try:
        files = decode_json(manifest)["files"]
        if all(entry["bytes"] >= 0 and entry["sha256"] and _is_inside(entry["path"]) for entry in files):
            return files
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{folder / MANIFEST}: is no shard manifest; run shard again")


def _is_inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _fetch_file(folder: Location, copy: Path, entry: dict[str, Any]) -> None:
    """Fetches a file of the manifest. Raises BadInput if its bytes are not those of the manifest."""
    source, target = folder / entry["path"], copy / entry["path"]
    if not source.is_file():
        raise BadInput(f"{source}: is missing, but listed in the manifest; run shard again")
    with written_aside(target) as part:
        with source.open_stream() as stream, HashedFile(part) as file:
            while piece := stream.read(PIECE):
                file.write(piece)
        got = file.entry(part.parent)
        if (got["bytes"], got["sha256"]) != (entry["bytes"], entry["sha256"]):
            raise BadInput(f"{source}: its bytes are not those of its manifest (sha256 differs); run shard again")
