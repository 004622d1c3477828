"""The place where a shard folder is written, on this disk or in a store: what a new folder may replace.

- Only files that `shard` writes are replaced, known by their names. Any other file makes the place another's.
- `datasets` writes some of these names too. A folder without a manifest is one of ours if it has a file of SIGNS.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from data_prep.remote.copies import MANIFEST
from data_prep.remote.location import Location
from data_prep.shards.folder import SPLITS
from data_prep.shards.shared_keys import FILES as SHARING_FILES
from data_prep.shards.tokens import FILES as TOKEN_FILES

SIGNS = {*SHARING_FILES, *TOKEN_FILES}  # names that no other program writes
_OF_SPLIT = re.compile(rf"({'|'.join(SPLITS)})/(data-\d{{5,}}-of-\d{{5,}}\.arrow|state\.json|dataset_info\.json)")


def is_written(name: str) -> bool:
    """Returns True for the name, within a shard folder, of a file that `shard` writes."""
    return name in {*SIGNS, MANIFEST, "dataset_dict.json"} or _OF_SPLIT.fullmatch(name) is not None


def names_in(folder: Path) -> set[str]:
    """Returns what is in a local folder and in the folders of its splits, by its path in it."""
    names = set()
    for entry in folder.iterdir():
        if entry.name in SPLITS and entry.is_dir() and not entry.is_symlink():
            names |= {f"{entry.name}/{inner.name}" for inner in entry.iterdir()}
        else:
            names.add(entry.name)
    return names


def is_unfinished(names: Collection[str]) -> bool:
    """Returns True for the names of a shard folder without its manifest: an upload that was killed, a partial copy."""
    return MANIFEST not in names and not SIGNS.isdisjoint(names) and all(map(is_written, names))


def looks_unfinished(path: Path) -> bool:
    """Returns True for a local shard folder without its manifest."""
    return path.is_dir() and is_unfinished(names_in(path))


def problem_of(names: Collection[str], overwrite: bool) -> str | None:
    """Returns why nothing may be written in place of the files with these names; None: it may."""
    strange = sorted(name for name in names if not is_written(name))
    if strange:
        return f"holds other files, such as {strange[0]}; choose another folder"
    if MANIFEST in names:
        return None if overwrite else "is a finished shard folder; choose another folder or add --overwrite"
    if names and not is_unfinished(names):
        return f"holds files that may be of another dataset, such as {min(names)}; choose another folder"
    return None


def overlaps(inputs: Iterable[Path | Location], output: Path | Location) -> list[str]:
    """Returns the problems of inputs that the output would replace, and of an output within an input."""
    problems, target = [], _parts(output)
    for path in inputs:
        parts = _parts(path)
        if parts[: len(target)] == target:
            problems.append(f"--output {output}: holds the input {path}; choose another folder")
        elif target[: len(parts)] == parts:
            problems.append(f"--output {output}: lies in the input {path}; choose another folder")
    return problems


def _parts(place: Path | Location) -> tuple[str, ...]:
    return (place.scheme, *place.key.split("/")) if isinstance(place, Location) else place.resolve().parts
