"""Vectors of texts on disk, so that a run that was killed resumes without computing them again."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_prep.common.console import say, track
from data_prep.common.errors import Failed

Compute = Callable[[list], tuple[np.ndarray, np.ndarray]]
Text = str | tuple[str, str]  # a text, or the two that a cross-encoder reads together


class VectorCache:
    """One float32 vector per text, appended to two files and read memory-mapped.

    NAME.f32 holds the vectors; NAME.keys a 64-bit key of each exact text and a flag, truncated. compute: texts ->
    ((n, size) float32, (n,) bool: truncated), called with `block` texts at a time. About 100 bytes of memory per text.
    Failed: another process has the files open.
    """

    def __init__(self, folder: Path, name: str, size: int, compute: Compute, block: int):
        from filelock import FileLock, Timeout

        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.size, self.compute, self.block = name, size, compute, block
        self.lock = FileLock(folder / f"{name}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise Failed(f"{folder}: another process is mining with these {name}; wait for it to end") from None
        self.entry = np.dtype([("key", "<u8"), ("truncated", "?")])
        self.keys = open(folder / f"{name}.keys", "a+b")  # noqa: SIM115  open as long as the cache is
        self.vectors = open(folder / f"{name}.f32", "a+b")  # noqa: SIM115
        whole = min(self.keys.tell() // self.entry.itemsize, self.vectors.tell() // (4 * size))
        self.keys.truncate(whole * self.entry.itemsize)  # half-written by a run that was killed
        self.vectors.truncate(whole * 4 * size)
        self.keys.seek(0)
        entries = np.frombuffer(self.keys.read(), self.entry)
        self.row_of = {key: row for row, key in enumerate(entries["key"].tolist())}
        self.truncated = bytearray(entries["truncated"].tobytes())
        self._map()

    def __len__(self) -> int:
        return len(self.truncated)

    def _map(self) -> None:
        shape = (len(self), self.size)
        self.all = np.memmap(self.vectors, np.float32, "r", shape=shape) if len(self) else np.empty(shape, np.float32)

    def rows(self, texts: Sequence[Text], label: str = "") -> np.ndarray:
        """Rows of the texts in `all`, (n,) int64; computes missing ones. label: of the progress bar."""
        keys = [_key(text) for text in texts]
        missing = {key: i for i, key in enumerate(keys) if key not in self.row_of}
        if label and 0 < len(missing) < len(set(keys)):
            say(f"{label}: {len(set(keys)) - len(missing):,} of {len(set(keys)):,} are there from an earlier run")
        starts = range(0, len(missing), self.block)
        order = list(missing.values())
        for start in track(starts, f"{label} (blocks of {self.block:,})", len(starts)) if label else starts:
            block = order[start : start + self.block]
            self.put([texts[i] for i in block], *self.compute([texts[i] for i in block]))
        return np.array([self.row_of[key] for key in keys], np.int64)

    def put(self, texts: Sequence[Text], vectors: np.ndarray, truncated: np.ndarray | None = None) -> None:
        """Appends the vectors of the texts that are missing."""
        new = list({key: i for i, text in enumerate(texts) if (key := _key(text)) not in self.row_of}.values())
        if not new:
            return
        texts, vectors = [texts[i] for i in new], vectors[new]
        truncated = np.zeros(len(new), bool) if truncated is None else truncated[new]
        if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
            example = str(texts[bad[0]])[:80]
            raise Failed(f"{self.name}: the model gives no number for {len(bad):,} texts, as for {example!r}")
        entries = np.empty(len(texts), self.entry)
        entries["key"], entries["truncated"] = [_key(text) for text in texts], truncated
        for handle, data in ((self.vectors, np.ascontiguousarray(vectors, np.float32)), (self.keys, entries)):
            handle.write(data.tobytes())  # vectors first: a key claims that its vector exists
            handle.flush()
            os.fsync(handle.fileno())
        self.row_of.update(zip(entries["key"].tolist(), range(len(self), len(self) + len(texts))))
        self.truncated += truncated.astype(np.uint8).tobytes()
        self._map()

    def close(self) -> None:
        del self.all
        self.keys.close()
        self.vectors.close()
        self.lock.release()


def _key(text: Text) -> int:
    data = text if isinstance(text, str) else "\0".join(text)
    return int.from_bytes(hashlib.blake2b(data.encode(), digest_size=8).digest(), "little")
