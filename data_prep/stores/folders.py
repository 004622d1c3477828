"""Read-only looks into the folder of a store before its library opens it, and a temporary copy to open in its place.

Libraries change what they open: Chroma migrates the tables of older versions, Qdrant's local mode deletes what it takes
for outdated. Neither asks, so the folder is examined first.
"""

import base64
import functools
import importlib.metadata
import io
import json
import os
import pickle
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data_prep.common.console import say
from data_prep.common.environment import settings_read_by
from data_prep.common.errors import BadInput, Failed
from data_prep.stores.base import StoreConfig, check_folder

CHROMA_FILE, QDRANT_FILE = "chroma.sqlite3", "meta.json"
_DATABASES = (".sqlite3", ".sqlite")
_OF_A_PROCESS = ("-journal", "-wal", "-shm", ".lock")  # ends of files that belong to whoever has the store open


def import_chromadb() -> tuple[Any, Any]:
    """Returns the library and its settings. BadInput for a variable (environment, `.env`) that it cannot read."""
    with settings_read_by("chromadb"):
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            raise Failed("--store chroma: needs Chroma: pip install 'embedfleet[stores]'") from None
        # the address comes from the flags: another one in the environment would be an error
        settings = Settings(anonymized_telemetry=False, chroma_server_host=None, chroma_server_http_port=None)
    if getattr(settings, "chroma_db_impl", None):
        raise BadInput("CHROMA_DB_IMPL: is of Chroma before 0.4, and newer ones refuse to start with it; unset it")
    return chromadb, settings


@contextmanager
def read_only(file: Path) -> Iterator[sqlite3.Connection]:
    """Yields a connection to a SQLite file that cannot change it."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


def rows_of(file: Path, query: str, *values: Any) -> list[tuple]:
    """Returns the rows of a query. Raises sqlite3.Error for a damaged file or a missing table."""
    with read_only(file) as connection:
        return connection.execute(query, values).fetchall()


@contextmanager
def folder_to_open(config: StoreConfig, change: str | None, reading: bool, create: bool) -> Iterator[Path | None]:
    """Yields the folder to open: the store's own, or a temporary copy where opening would change the store unasked.

    change: what opening would do to the store, as a clause after its path; None: nothing. BadInput if the caller wants
    to write into a store that must not be changed. create: the caller may as well write somewhere else.
    """
    if config.path is not None and reading and change is None and not os.access(config.path, os.W_OK):
        change = "cannot be written to, and its library writes into every folder that it opens"
    if change is None or config.upgrade_store:
        yield config.path
        return
    if not reading:
        mend = "copy the folder, name the copy and add --upgrade-store; or add it for this folder"
        mend = "choose another --path" if create else mend
        raise BadInput(f"--path {config.path}: {change}; {mend}")
    mend = "so a temporary copy is read and the folder stays as it is (--upgrade-store lets it be changed)"
    say(f"note: --path {config.path}: {change}; {mend}")
    with tempfile.TemporaryDirectory(prefix="embedfleet-", ignore_cleanup_errors=True) as copy:
        _copy(config.path, Path(copy))
        yield Path(copy)


def _copy(source: Path, target: Path) -> None:
    """Copies a store. SQLite's own backup copies the databases, so that a process that writes meanwhile tears none."""
    files = [path for path in source.rglob("*") if path.is_file() and not path.name.endswith(_OF_A_PROCESS)]
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(target).free
    if needed > free:
        raise Failed(
            f"--path {source}: a temporary copy needs {needed:,} bytes, and {target.parent} has {free:,} free; set "
            "TMPDIR to a folder with more space"
        )
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in _DATABASES:
            shutil.copyfile(path, copy)
            continue
        with read_only(path) as original, closing(sqlite3.connect(copy)) as database:
            original.backup(database)


def examine_chroma(folder: Path, create: bool) -> str | None:
    """Returns what opening the folder would change in it, or None. BadInput if this Chroma cannot read it.

    create: it may be missing or empty. Otherwise Chroma would create a store there silently.
    """
    import_chromadb()  # first: what keeps the library from starting is named whatever the folder is
    file = folder / CHROMA_FILE
    if not create:
        if list(folder.glob("chroma-*.parquet")) and not file.is_file():
            mend = "migrate a copy with the tool chroma-migrate"
            raise BadInput(f"--path {folder}: was written by a Chroma before 0.4, which kept Parquet files; {mend}")
        check_folder(folder, CHROMA_FILE, "Chroma", "Chroma folder")
    if not file.is_file():
        return None
    try:
        if not rows_of(file, "select 1 from sqlite_master where name = 'collections'"):
            raise sqlite3.DatabaseError
        applied = _migrations(file)
    except sqlite3.Error:
        raise BadInput(f"--path {folder}: {CHROMA_FILE} is damaged or no Chroma database") from None
    known, version = _known_migrations(), importlib.metadata.version("chromadb")
    if unknown := sorted(applied - known):
        mend = "pip install -U chromadb"
        raise BadInput(
            f"--path {folder}: was written by a Chroma newer than {version}, which does not know "
            f"{_in_short(unknown)}; {mend}"
        )
    if missing := sorted(known - applied):
        return (
            f"was written by an older Chroma. Opening it with Chroma {version} changes its tables for good "
            f"({_in_short(missing)}), and the version that wrote it can then no longer read it"
        )
    return None


def _in_short(migrations: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{part} {number}" for part, number in migrations[:3])
    return f"{len(migrations)} migrations: {shown}" + (" …" if len(migrations) > 3 else "")


def _migrations(file: Path) -> frozenset[tuple[str, int]]:
    """Returns the migrations of a database: the part of Chroma and the number of each."""
    if not rows_of(file, "select 1 from sqlite_master where name = 'migrations'"):
        return frozenset()
    return frozenset(rows_of(file, "select dir, version from migrations"))


@functools.cache
def _known_migrations() -> frozenset[tuple[str, int]]:
    """Returns the migrations of the installed Chroma, from a store that it creates: its files do not list them all."""
    chromadb, settings = import_chromadb()
    with tempfile.TemporaryDirectory(prefix="embedfleet-") as folder:
        chromadb.PersistentClient(folder, settings=settings).close()
        return _migrations(Path(folder, CHROMA_FILE))


def examine_qdrant(folder: Path, create: bool) -> str | None:
    """Returns what opening the folder would change in it, or None. BadInput if it is no folder of local mode.

    create: it may be missing or empty.
    """
    if not create:
        check_folder(folder, QDRANT_FILE, "Qdrant", "folder of Qdrant's local mode")
    if not (folder / QDRANT_FILE).is_file():
        return None
    try:
        names = list(json.loads((folder / QDRANT_FILE).read_text(encoding="utf-8"))["collections"])
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"--path {folder}: {QDRANT_FILE} is damaged or not Qdrant's") from None
    copies = sum(_outdated(folder / "collection" / name / "storage.sqlite") for name in names)
    if not copies:
        return None
    return f"holds {copies:,} outdated copies of points, which Qdrant's client deletes as soon as it opens the folder"


def _outdated(file: Path) -> int:
    """Returns how many rows of a collection of local mode are a point's that another row has, by its id.

    Older clients kept a point once for each spelling of its UUID and each pickle protocol of its id.
    """
    if not file.is_file():
        return 0
    try:
        keys = [key for (key,) in rows_of(file, "select id from points")]
        ids = {_normal(_Plain(io.BytesIO(base64.b64decode(key))).load()) for key in keys}
    except (sqlite3.Error, ValueError, TypeError, EOFError, pickle.UnpicklingError):
        return 0  # not of this form; the client says so
    return len(keys) - len(ids)


class _Plain(pickle.Unpickler):
    """Reads numbers and texts, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no id")


def _normal(point_id: Any) -> Any:
    try:
        return str(uuid.UUID(point_id)) if isinstance(point_id, str) else point_id
    except ValueError:
        return point_id
