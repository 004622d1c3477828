"""Proofs of a cluster's node before it works: the driver's versions, inputs and output folder.

- The driver describes itself as a Job. Each node compares the Job with what it finds, and names every difference.
- The folder `probe` lies beside the output. The driver and every node write a file into it, and every node reads all.
- A node that joins later is checked by each of its processes before their first task (`check_once`).
"""

import hashlib
import platform
import shutil
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import BadInput, of_system
from data_prep.common.files import cache_folder
from data_prep.remote.location import Location

# whose code decides on written bytes; embedfleet's own is compared by its files
PACKAGES = ("numpy", "pyarrow", "datasets", "tokenizers", "orjson", "regex", "rensa", "py3langid")
PACKAGES += ("cyrtranslit", "iuliia", "lxml", "selectolax", "charset-normalizer", "markdown-it-py", "mdit-py-plugins")
EDGE = 1 << 16  # bytes at both ends of a file that are compared
SAMPLED = 16  # files of a folder whose bytes are compared; of the others names and sizes
SETTLE_SECONDS = 10  # for what another node wrote to become visible
DRIVER = "driver"
_checked: set[str] = set()


class Job(NamedTuple):
    """The driver's side of every comparison. It travels with each task and holds no secret."""

    token: str  # the content of every file in the probe
    versions: dict[str, str]
    inputs: dict[Path, str]  # absolute path -> identity
    probe: Path | None  # None: no task writes files
    cache: Path | None  # of the driver, which EMBEDFLEET_CACHE names; None: it has no home folder


def new_job(inputs: Iterable[Path | Location], output: Path | None) -> Job:
    """Describes the driver, and writes its file into a new probe beside the output.

    inputs: absolute paths, and URLs, which every node reads or fails to by itself. output: absolute.
    """
    probe = output.with_name(f".{output.name}.nodes") if output else None
    paths = {path: identity(path) for path in inputs if isinstance(path, Path)}
    job = Job(uuid.uuid4().hex, versions(), paths, probe, _cache())
    if probe:
        try:
            probe.mkdir(parents=True, exist_ok=True)
            _mark(job, DRIVER)
        except BaseException:
            shutil.rmtree(probe, ignore_errors=True)
            raise
    return job


def _cache() -> Path | None:
    try:
        return cache_folder("").absolute()
    except BadInput:
        return None


def mend(job: Job, path: Path, own: str = "mount the same folder on every node") -> str:
    """Returns how nodes come to see a path. own: for one that the user gave, as none in the cache is."""
    if job.cache and path.is_relative_to(job.cache):
        return "for this command set EMBEDFLEET_CACHE, in which it lies, to a folder that every node mounts"
    return own


def versions() -> dict[str, str]:
    """Returns the versions of Python, embedfleet (a hash of data_prep's files) and PACKAGES; "none": not installed."""
    return {"python": platform.python_version(), "embedfleet": _source_hash()} | {
        name: _version(name) for name in PACKAGES
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _source_hash() -> str:
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def identity(path: Path) -> str:
    """Returns a hash of an input: names and sizes of its files, and bytes at their ends. Why it has none, else."""
    digest = hashlib.sha256()
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for number, file in enumerate(files):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
            if number < SAMPLED:
                with open(file, "rb") as handle:
                    digest.update(handle.read(EDGE))
                    handle.seek(max(0, size - EDGE))
                    digest.update(handle.read(EDGE))
    except OSError as error:
        return of_system(error)
    return digest.hexdigest()


def differences(job: Job, node: str) -> list[str]:
    """Returns how this node differs from the driver, and leaves its mark in the probe. node: a name for files."""
    own = versions()
    problems = [
        f"{name} {own[name]}, but {theirs} here" for name, theirs in job.versions.items() if own[name] != theirs
    ]
    for path, theirs in job.inputs.items():
        if identity(path) != theirs:
            how = mend(job, path, "give paths that every node sees")
            problems.append(f"{path} is missing or another file; {how}")
    if job.probe:
        folder = job.probe.parent
        if unseen(job, [DRIVER]):
            problems.append(f"{folder} is not the folder of this machine; {mend(job, folder)}")
        else:
            try:
                _mark(job, node)
            except OSError as error:
                problems.append(f"{folder} cannot be written: {of_system(error)}")
    return problems


def check_once(job: Job, node: str, name: str) -> None:
    """Checks this process's node before its first task of the job. Raises BadInput with every difference."""
    if job.token not in _checked:
        if found := differences(job, node):
            raise BadInput([f"node {name}: {problem}" for problem in found])
        _checked.add(job.token)


def unseen(job: Job, nodes: Iterable[str]) -> list[str]:
    """Returns the nodes whose mark in the probe this node does not see within SETTLE_SECONDS."""
    until = time.monotonic() + SETTLE_SECONDS
    while (missing := [node for node in nodes if not _seen(job, node)]) and time.monotonic() < until:
        if not job.probe.is_dir():
            break
        time.sleep(0.2)
    return missing


def _mark(job: Job, node: str) -> None:
    (job.probe / node).write_text(job.token, encoding="utf-8")


def _seen(job: Job, node: str) -> bool:
    try:
        return (job.probe / node).read_text(encoding="utf-8") == job.token
    except OSError:
        return False
