"""Answers of a model on disk, so that none is paid for twice: append-only files for each request.

A request is the model, and all else that decides an answer beside the text.

- CACHE/<hash of the request>.jsonl belongs to the one process that asks. Its first line holds the request in plain
  words, then follows one answer per line.
- Workers that divide the chunks (Part) append to files of their own, a new one at each start:
  <hash>.part-3-of-8.<random>.jsonl. No file has two writers, so that a network file system needs no lock.
- Every process reads all files of its request when it starts, or only those of its part (`alone`).
- <hash>.part-3-of-8.json lists the chunks that a finished part got no answer about, with the reasons. The newest says.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import fsync_folder, whole_file
from data_prep.common.finite import decode_json

FORMAT = 1  # part of every file's name: raise it when the request or the reading of a line changes
OPEN_FILES = 64  # of other processes, at a time
_PART = re.compile(r"\.part-(\d+)-of-(\d+)\.")

Reason = tuple[str, bool]  # why a chunk has no answer, and if it may get one later
A = TypeVar("A")  # kind of the answers: a dataclass with slots, texts and counts, `url` among them


class Part(NamedTuple):
    """One of `count` workers that divide the chunks, by the hash of their texts. number: from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, text: str) -> bool:
        """Returns True for a chunk of this part. Chunks with the same text are in the same one."""
        return part_of(text, self.count) == self.number


def part_of(text: str, count: int) -> int:
    """Returns the number of the part that asks about a chunk of this text: 1..count."""
    return int.from_bytes(key_of(text)[:8], "big") % count + 1


def read_part(text: str) -> Part:
    """Returns the part that a text such as 3/8 names. Raises BadInput."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise BadInput(f"--part {text}: must be K/N, such as 3/8: part 3 of 8")
    return Part(int(number), int(count))


class AnswerCache(Generic[A]):
    """Answers by the text that they are about.

    An answer counts (`in`, `get`) once it is fsynced. A last line torn by a crash is removed and damaged lines are
    skipped; both are reported and asked again.
    """

    def __init__(
        self,
        folder: Path,
        request: dict[str, Any],
        kind: type[A],
        part: Part | None = None,
        reading: bool = False,
        patience: float = 0.0,
        alone: bool = False,
    ):
        """request: all that decides the answer except the text: model, prompt, parameters. JSON values, no secret.
        part: of this process; None: it asks about all chunks. reading: it asks about none, and writes nothing.
        patience: seconds to wait for the end of another process that asks the same. alone: only this part has answers
        to its texts, so that its process need not keep those of all others in memory.

        Failed: another process asks the same; of parts this is seen on one machine only.
        """
        self.kind = kind
        self._types = {name: int | None if name.startswith("tokens") else str for name in kind.__slots__}
        described = json.dumps({"format": FORMAT, **request}, sort_keys=True)
        self._name = hashlib.sha256(described.encode()).hexdigest()[:32]
        self._folder, self._part = folder, part
        self.path = folder / f"{self._name}.jsonl"  # that this process writes
        self.urls: Counter[str] = Counter()
        self._at: dict[bytes, tuple[int, int, int]] = {}  # key -> number of the file, offset and length of its line
        self._files: list[Path] = []
        self._open: dict[int, int] = {}  # number of a file -> its handle
        self._waiting: list[tuple[bytes, bytes]] = []
        self._writing = asyncio.Lock()
        self._failure: OSError | None = None
        self._lock = self._file = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not reading:
            self._lock_out_others(patience)
        own = None if part or reading else self.path
        names = f"{self._of(part)}." if alone else self._name
        for path in sorted(folder.glob(f"{names}*.jsonl")):
            if path != own:
                self._read(path)
        if part:
            self.path = folder / f"{self._of(part)}.{secrets.token_hex(4)}.jsonl"
        if not reading:
            self._begin(described.encode() + b"\n")

    def _of(self, part: Part) -> str:
        return f"{self._name}.part-{part.number}-of-{part.count}"

    def _lock_out_others(self, patience: float) -> None:
        from filelock import FileLock, Timeout

        lock, what = self.path.with_suffix(".lock"), "another run asks the same of the same model"
        if self._part:  # beside this machine's temporary files: a network file system is not relied on
            place = f"{Path.home()} {self._folder.resolve()} {self._of(self._part)}"
            lock = Path(tempfile.gettempdir(), f"embedfleet-{hashlib.sha256(place.encode()).hexdigest()[:24]}.lock")
            what = f"another run on this machine is --part {self._part} of the same"
        self._lock = FileLock(lock)
        try:
            self._lock.acquire(timeout=patience)
        except Timeout:
            raise Failed(f"{self.path}: {what}; wait for it, or give --cache DIR") from None

    def _begin(self, head: bytes) -> None:
        """Opens the file of this process, and reads what it holds."""
        new = os.O_EXCL if self._part else 0
        if self._part:  # it is not finished any more
            (self._folder / f"{self._of(self._part)}.json").unlink(missing_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | new, 0o600)
        self._end = self._read(self.path)
        self._number = len(self._files) - 1
        self._open[self._number] = self._file
        if not self._end:
            self._append(head)
            fsync_folder(self._folder)

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *_) -> None:
        for handle in self._open.values():
            os.close(handle)
        if self._lock:
            self._lock.release()

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, text: str) -> bool:
        return key_of(text) in self._at

    def get(self, text: str) -> A | None:
        """Returns the answer about a chunk of this text."""
        position = self._at.get(key_of(text))
        if position is None:
            return None
        number, offset, length = position
        line = json.loads(os.pread(self._handle(number), length, offset))
        return self.kind(**{name: line[name] for name in self._types})

    def _handle(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) > OPEN_FILES:
                oldest = next(other for other in self._open if self._open[other] != self._file)
                os.close(self._open.pop(oldest))
            self._open[number] = os.open(self._files[number], os.O_RDONLY)
        return self._open[number]

    async def put(self, answers: Mapping[str, A]) -> None:
        """Returns when the answers are on disk, by text. Answers that arrive during a write share the next one."""
        lines = {key_of(text): answer for text, answer in answers.items()}
        self._waiting += [(key, _line(key, answer)) for key, answer in lines.items()]
        async with self._writing:
            if lines.keys() <= self._at.keys():
                return
            if self._failure is None:
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._append, b"".join(line for _, line in batch))
                except OSError as error:
                    self._failure = error
                else:
                    self._index(batch)
            if self._failure is not None:  # also for callers whose line was in that batch
                raise self._failure

    def _index(self, batch: list[tuple[bytes, bytes]]) -> None:
        offset = self._end - sum(len(line) for _, line in batch)
        for key, line in batch:
            self._at[key] = self._number, offset, len(line)
            offset += len(line)

    def _append(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk: no half line may precede the next answer
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def _read(self, path: Path) -> int:
        """Adds a file to the index and returns the length of its whole lines."""
        offset = damaged = 0
        self._files.append(path)
        with open(path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    if self._file is not None:  # the last line of another process may be under way
                        os.ftruncate(self._file, offset)
                        say(f"note: {path}: its last line was cut off by a crash; that answer is asked for again")
                    break
                if number:
                    damaged += not self._read_line(line, offset)
                offset += len(line)
        if damaged:
            say(f"note: {path}: {damaged:,} damaged lines are skipped; their texts are asked about again")
        return offset

    def _read_line(self, line: bytes, offset: int) -> bool:
        try:
            value = decode_json(line)
            key = bytes.fromhex(value["chunk"])
            if not all(isinstance(value[name], kind) for name, kind in self._types.items()):
                return False
        except (ValueError, KeyError, TypeError):
            return False
        self._at[key] = len(self._files) - 1, offset, len(line)
        self.urls[value["url"]] += 1
        return True

    def save_unanswered(self, reasons: Mapping[bytes, Reason]) -> None:
        """Writes that this part is finished. reasons: of the chunks without an answer, by key_of."""
        values = {key.hex(): list(reason) for key, reason in reasons.items()}
        with whole_file(self._folder / f"{self._of(self._part)}.json") as file:
            json.dump(values, file)  # ASCII: lone surrogates survive

    def unanswered(self) -> dict[bytes, Reason]:
        """Returns what finished parts saved, by key_of.

        A chunk may be in several files where the number of parts was another one before: the newest says.
        """
        found = {}
        paths = self._folder.glob(f"{self._name}.part-*.json")
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            found |= {bytes.fromhex(key): tuple(reason) for key, reason in json.loads(path.read_bytes()).items()}
        return found

    def files_of_parts(self) -> list[Path]:
        """Lists the files of all parts, those of other processes included."""
        return sorted(self._folder.glob(f"{self._name}.part-*.jsonl"))

    @property
    def parts(self) -> int | None:
        """Number of parts into which the chunks were divided last; None: they never were."""
        files = [path for path in self._files if _PART.search(path.name)]
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        return int(_PART.search(newest.name)[2]) if newest else None


def _line(key: bytes, answer: Any) -> bytes:
    return json.dumps({"chunk": key.hex(), **asdict(answer)}).encode() + b"\n"  # ASCII: lone surrogates survive


def key_of(text: str) -> bytes:
    """Returns the key of a text in the cache: its sha256."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
