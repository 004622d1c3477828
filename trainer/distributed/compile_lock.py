"""Operators that DeepSpeed compiles on first use: in a folder per machine, and never waiting for a compiler that died.

torch.utils.cpp_extension lets one process at a time into a folder by a file named `lock`, and removes it when it is
done. A process that is killed meanwhile leaves the file, and every later run waits for it without a word, for ever
(pytorch issue 25156 and others). So ours meet at a lock that the kernel gives back with its holder's death; whoever
holds that one knows that any `lock` it finds was left behind.
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
    """Where operators of this machine, Python and torch are kept: a home shared by unlike machines serves them all."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(given) if given else Path.home() / ".cache" / "torch_extensions"
    if root.name.startswith(PREFIX):  # a parent process has set it already
        return root
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return root / f"{PREFIX}{platform.node()}-{python}-torch{torch.__version__}"


@contextmanager
def compiling_alone() -> Iterator[Path]:
    """Makes torch compile in operator_folder(), one process at a time; a lock that a dead one left is taken away."""
    import fcntl

    if found := ninja():  # torch looks for it on PATH alone; that there is one was checked
        os.environ["PATH"] = f"{Path(found).parent}{os.pathsep}{os.environ.get('PATH', '')}"
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
