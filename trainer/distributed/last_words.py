"""Hands the errors of ranks to what started them: launchers print a long traceback below what a rank says.

- `launch run` names a file, and repeats the errors last.
- torchrun, also inside `accelerate launch`, names a file of its own, and ends its traceback with what is in there.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "EMBEDFLEET_LAST_WORDS"  # the file that `launch run` reads once the launcher has ended
OF_TORCHRUN = "TORCHELASTIC_ERROR_FILE"
MOST = 5  # errors that are repeated; the ranks of a large run often say the same


def leave(text: str) -> None:
    """Leaves a rank's error for `launch run` and for torchrun; does nothing under another launcher."""
    text = text.strip()
    if name := os.environ.get(VARIABLE):
        with suppress(OSError), open(name, "a", encoding="utf-8") as file:
            file.write(f"{text}\n\0")  # one write: ranks of a machine share the file
    if name := os.environ.get(OF_TORCHRUN):  # one per rank
        facts = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(name, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": text, "extraInfo": facts}}, file)


def read(path: Path) -> list[str]:
    """Returns the errors that ranks left, the first of them first and each once."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))[:MOST]
