"""Answers of a model on disk, so that none is paid for twice: an append-only file for each request.

A request is the model, and all else that decides an answer beside the text.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.common.console import say
from data_prep.common.errors import Failed
from data_prep.common.files import fsync_folder
from data_prep.common.finite import decode_json

FORMAT = 1  # part of every file's name: raise it when the request or the reading of a line changes


A = TypeVar("A")  # kind of the answers: a dataclass with slots, texts and counts, `url` among them


class AnswerCache(Generic[A]):
    """Answers by the text that they are about.

    The file is CACHE/<hash of the request>.jsonl. Its first line holds the request in plain words, then follows one
    answer per line. An answer counts (`in`, `get`) once it is fsynced. Only one process may use it: Failed otherwise.
    A last line torn by a crash is removed and damaged lines are skipped; both are reported and asked again.
    """

    def __init__(self, folder: Path, request: dict[str, Any], kind: type[A]):
        """request: all that decides the answer except the text: model, prompt, parameters. JSON values, no secret."""
        from filelock import FileLock, Timeout

        self.kind = kind
        self._types = {name: int | None if name.startswith("tokens") else str for name in kind.__slots__}
        described = json.dumps({"format": FORMAT, **request}, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.jsonl"
        self.urls: Counter[str] = Counter()
        self._at: dict[bytes, tuple[int, int]] = {}  # key -> offset and length of its line
        self._waiting: list[tuple[bytes, bytes]] = []
        self._writing = asyncio.Lock()
        self._failure: OSError | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Failed(
                f"{self.path}: another run asks the same of the same model; wait for it, or give --cache DIR"
            ) from None
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._end = self._read()
        if not self._end:
            self._append(described.encode() + b"\n")
            fsync_folder(folder)

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._file)
        self._lock.release()

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, text: str) -> bool:
        return key_of(text) in self._at

    def get(self, text: str) -> A | None:
        """Returns the answer about this text."""
        position = self._at.get(key_of(text))
        if position is None:
            return None
        offset, length = position
        line = json.loads(os.pread(self._file, length, offset))
        return self.kind(**{name: line[name] for name in self._types})

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
            self._at[key] = offset, len(line)
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

    def _read(self) -> int:
        """Fills the index and returns the length of the whole lines."""
        offset = damaged = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, offset)
                    say(f"note: {self.path}: its last line was cut off by a crash; that answer is asked for again")
                    break
                if number:
                    damaged += not self._read_line(line, offset)
                offset += len(line)
        if damaged:
            say(f"note: {self.path}: {damaged:,} damaged lines are skipped; their texts are asked about again")
        return offset

    def _read_line(self, line: bytes, offset: int) -> bool:
        try:
            value = decode_json(line)
            key = bytes.fromhex(value["chunk"])
            if not all(isinstance(value[name], kind) for name, kind in self._types.items()):
                return False
        except (ValueError, KeyError, TypeError):
            return False
        self._at[key] = offset, len(line)
        self.urls[value["url"]] += 1
        return True


def _line(key: bytes, answer: Any) -> bytes:
    return json.dumps({"chunk": key.hex(), **asdict(answer)}).encode() + b"\n"  # ASCII: lone surrogates survive


def key_of(text: str) -> bytes:
    """Returns the key of a text in the cache: its sha256."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
