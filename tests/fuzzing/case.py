"""One input of the fuzzer, as a file that can be replayed, and the run of it within limits."""

import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.launching import ROOT

CPU_SECONDS = 10  # of one input, far above what the slowest good one takes
FIRST_SECONDS = 60  # of the first input of a process, which imports everything
OURS = tuple(str(ROOT / name) + os.sep for name in ("data_prep", "trainer", "launch"))


class Finding(AssertionError):
    """Something that must not happen. kind: equal for findings with one cause, as far as can be told."""

    def __init__(self, kind: str, text: str = ""):
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind


class TooSlow(Exception):
    """The input took more than CPU_SECONDS."""


@dataclass
class Case:
    """One input of a target."""

    target: str
    data: Any = None  # JSON values
    files: dict[str, bytes] = field(default_factory=dict)  # by path in the case's folder

    def to_json(self) -> str:
        """Returns the case; files that are ASCII stand there as they are."""
        files = {name: text(body) for name, body in self.files.items()}
        return json.dumps({"target": self.target, "data": self.data, "files": files}, indent=1)

    @classmethod
    def from_json(cls, written: str) -> "Case":
        values = json.loads(written)
        files = {
            name: body.encode() if isinstance(body, str) else base64.b64decode(body["base64"])
            for name, body in values["files"].items()
        }
        return cls(values["target"], values["data"], files)

    def write_files(self, folder: Path) -> None:
        for name, body in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body)


def text(body: bytes) -> str | dict[str, str]:
    return body.decode() if body.isascii() and b"\r" not in body else {"base64": base64.b64encode(body).decode()}


def run_case(case: Case, check: Callable[[Case, Path], None], limited: bool = True) -> None:
    """Runs the check of a case in a folder of its own. Raises what it raises; limited: TooSlow beyond CPU_SECONDS."""
    here, limit = os.getcwd(), _limited() if limited else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as name, limit, _quiet():
        folder = Path(name).resolve()
        case.write_files(folder)
        os.chdir(folder)
        try:
            check(case, folder)
        finally:
            os.chdir(here)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else None


_seconds = [FIRST_SECONDS]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_) -> None:
        raise TooSlow(f"more than {CPU_SECONDS} s of CPU")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _seconds.pop() if _seconds else CPU_SECONDS, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Catches what commands print, with the strictness of a real terminal."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def printed() -> str:
    """Returns what was printed to stderr in this case."""
    sys.stderr.flush()
    return sys.stderr.buffer.getvalue().decode()


def signature(error: BaseException) -> str:
    """Returns a name that is equal for errors of one cause: the kind of a finding, or type and place in our code."""
    if isinstance(error, Finding):
        return error.kind
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename.startswith(OURS)), frames[-1])
    return f"{type(error).__name__} in {last.filename.removeprefix(str(ROOT) + os.sep)}:{last.name}"


def file_name(case: Case, name: str) -> str:
    return f"{case.target}-{hashlib.sha256(name.encode()).hexdigest()[:10]}.json"


def command(*arguments: str) -> int:
    """Runs a command of data_prep in this process; returns its exit code. Anything but an answer is a finding."""
    from data_prep import __main__ as entry

    if not hasattr(entry._parser, "cache_clear"):  # it takes longer than most commands
        entry._parser = functools.cache(entry._parser)
    try:
        code = entry.main([*arguments])
    except SystemExit as error:  # argparse
        code = error.code
    if code not in (0, 1, 2):
        raise Finding(f"{arguments[0]} ends with {code}")
    said = printed()
    if "Traceback" in said or "please report" in said:
        raise Finding(f"{arguments[0]} prints a traceback", said[-800:])
    if code and "error:" not in said:
        raise Finding(f"{arguments[0]} ends with {code} and no error", said[-300:])
    return code
