"""Vectors that a rank keeps: in memory, and many in a file that is mapped into memory.

- Up to IN_MEMORY bytes they are plain memory.
- Above, they are pages of a temporary file (TMPDIR), which the system writes out where memory is short.
- The file has no name once it is mapped, so it is gone with the vectors, also after a kill.
"""

import errno
import os
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from data_prep.common.errors import Failed

IN_MEMORY = 2**30  # bytes
AT_ONCE = 2**22  # numbers of a part


def keep(rows: int, size: int) -> Tensor:
    """Returns (rows, size) float32 of no particular value, on the CPU. Raises Failed where the disk is full."""
    if 4 * rows * size <= IN_MEMORY:
        return torch.empty(rows, size)
    with tempfile.NamedTemporaryFile(prefix="embedfleet-vectors-") as file:
        _reserve(file.fileno(), 4 * rows * size)
        return torch.from_file(file.name, shared=True, size=rows * size, dtype=torch.float32).view(rows, size)


def _reserve(file: int, count: int) -> None:
    """Takes the bytes from the disk now: a full disk found later, in the middle of a write, would end the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, count)
        elif os.fstatvfs(file).f_bavail * os.fstatvfs(file).f_frsize < count:  # macOS
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            os.truncate(file, count)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = tempfile.gettempdir()
        raise Failed(
            f"{place}: no space for {count / 2**30:,.1f} GiB of vectors; set TMPDIR to a folder on a larger disk"
        ) from None


def parts(vectors: Tensor) -> Iterator[Tensor]:
    """Yields the rows of (n, d) in order, some at a time, so that what is computed of them stays small."""
    yield from vectors.split(max(1, AT_ONCE // max(1, vectors.shape[1])))
