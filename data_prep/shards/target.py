"""The place where a shard folder is written, on this disk or in a store: what a new folder may replace.

- Only files that `shard` writes are replaced, known by their names. Any other file makes the place another's.
- Other programs write some of these names too. A folder is one of ours if it has a file of SIGNS, or our manifest.
"""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from data_prep.common.files import is_within
from data_prep.common.finite import decode_json
from data_prep.remote.copies import MANIFEST
from data_prep.remote.location import Location
from data_prep.shards.folder import COLUMNS, SPLITS, SPOOL
from data_prep.shards.shared_keys import FILES as SHARING_FILES
from data_prep.shards.tokens import FILES as TOKEN_FILES

SIGNS = {*SHARING_FILES, *TOKEN_FILES}  # names that no other program writes
_BESIDE = {*SIGNS, "dataset_dict.json"}  # files in the folder itself, besides the manifest
# of a split; cache-… is of `datasets`, when somebody filtered or mapped the split
_OF_SPLIT = re.compile(
    rf"({'|'.join(SPLITS)})/(data-\d{{5,}}-of-\d{{5,}}\.arrow|cache-[0-9a-f]+\.arrow|state\.json|dataset_info\.json)"
)


def is_written(name: str) -> bool:
    """Returns True for the name, within a shard folder, of a file that `shard` writes."""
    return name in {*_BESIDE, MANIFEST} or _OF_SPLIT.fullmatch(name) is not None


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
    """Returns True for what is read as no data: a folder with our columns and no manifest, a partial copy or a build
    that was killed. Its eval rows would be taken for others."""
    if not path.is_dir() or (path / MANIFEST).exists():
        return False
    names = {entry.name for entry in path.iterdir()}
    if not names or not names <= {*_BESIDE, *SPLITS, SPOOL}:
        return False
    if not names.isdisjoint({*SIGNS, SPOOL}):
        return True
    infos = [path / split / "dataset_info.json" for split in SPLITS if (path / split / "dataset_info.json").exists()]
    if not infos:  # killed before the first split was finished
        return any(any((path / split).glob("data-*.arrow")) for split in SPLITS)
    try:
        return all(set(json.loads(info.read_text())["features"]) == set(COLUMNS) for info in infos)
    except (ValueError, KeyError, TypeError):
        return False


def problem_of(place: Path | Location, names: Collection[str], overwrite: bool) -> str | None:
    """Returns why nothing may be written in place of the files with these names, all that is there; None: it may."""
    manifest = _manifest_in(place) if MANIFEST in names else None
    listed = {entry["path"] for entry in manifest["files"]} if manifest else set()  # also by another version
    strange = sorted(name for name in names if name not in listed and not is_written(name))
    if strange:
        return f"holds other files, such as {strange[0]}; choose another folder, or move them away"
    if MANIFEST in names and (manifest or not SIGNS.isdisjoint(names)):
        return None if overwrite else "is a finished shard folder; choose another folder or add --overwrite"
    if names and not is_unfinished(names):
        mend = "choose another folder, or delete this one"
        return f"holds files that may be of another dataset, such as {min(names)}; {mend}"
    return None


def _manifest_in(place: Path | Location) -> dict[str, Any] | None:
    """Returns the manifest of this or another version of `shard`; None for any other file."""
    file = place / MANIFEST
    try:
        content = decode_json(file.read() if isinstance(file, Location) else file.read_bytes())
        [entry["path"] for entry in content["files"]]
        return content if content.keys() >= {"schema_version", "fingerprint"} else None
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return None


def overlaps(
    inputs: Iterable[Path | Location], output: Path | Location, others: Iterable[Path | Location] = ()
) -> list[str]:
    """Returns the problems of inputs that the output would replace, and of an output within an input.

    others: what is read besides the inputs. The output may lie in it.
    """
    inputs = list(inputs)
    replaced = [path for path in (*inputs, *others) if _is_within(path, output)]
    around = [path for path in inputs if path not in replaced and _is_within(output, path)]
    problems = [f"--output {output}: holds the input {path}; choose another folder" for path in replaced]
    return problems + [f"--output {output}: lies in the input {path}; choose another folder" for path in around]


def _is_within(place: Path | Location, folder: Path | Location) -> bool:
    if isinstance(place, Path) and isinstance(folder, Path):
        return is_within(place, folder)
    return f"{place}/".startswith(f"{folder}/") and type(place) is type(folder)
