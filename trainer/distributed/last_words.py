"""Hands the errors of ranks to `launch run`, which repeats them last: launchers put a long traceback below them."""

import os
from contextlib import suppress
from pathlib import Path

VARIABLE = "EMBEDFLEET_LAST_WORDS"  # the file that `launch run` reads once the launcher has ended
MOST = 5  # errors that are repeated; the ranks of a large run often say the same


def leave(text: str) -> None:
    """Adds a rank's error to the file that `launch run` named; does nothing under another launcher."""
    name = os.environ.get(VARIABLE)
    if name:
        with suppress(OSError), open(name, "a", encoding="utf-8") as file:
            file.write(f"{text.strip()}\n\0")  # one write: ranks of a machine share the file


def read(path: Path) -> list[str]:
    """Returns the errors that ranks left, the first of them first and each once."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))[:MOST]
