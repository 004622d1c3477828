"""Lock around the operators that DeepSpeed compiles on first use, in one folder per machine.

torch.utils.cpp_extension admits one process at a time to a folder by a file named `lock`, and removes it at the end.
A killed process leaves the file, and every later run waits for it for ever, silently (pytorch issue 25156 and others).
Our processes take a kernel lock first, which ends with its holder. Its holder may remove any `lock` in the folder.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from data_prep.common.console import say
from trainer.distributed.deepspeed_json import ninja

PREFIX = "embedfleet-"


def operator_folder() -> Path:
    """Folder for operators of this machine, Python and torch, so that different machines can share a home."""
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(extensions) if extensions else Path.home() / ".cache" / "torch_extensions"
    if root.name.startswith(PREFIX):  # a parent process has set it already
        return root
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return root / f"{PREFIX}{platform.node()}-{python}-torch{torch.__version__}"


@contextmanager
def compiling_alone() -> Iterator[Path]:
    """Makes torch compile in operator_folder(), one process at a time; removes locks that killed processes left."""
    import fcntl

    if path := ninja():  # torch looks on PATH alone; check_deepspeed refuses a machine without ninja
        os.environ["PATH"] = f"{Path(path).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    folder = operator_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    # in the machine's own temporary folder: a shared home may have no such locks
    guard = os.open(
        Path(tempfile.gettempdir()) / f"{PREFIX}{os.getuid()}-{name}.lock",
        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW,
        0o600,
    )
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
            say(f"{left}: removed; a process that was killed while it compiled had left it, and all would wait for it")
        yield folder
    finally:
        os.close(guard)
