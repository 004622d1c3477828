"""Errors that the user can fix, collected so that one run reports all of them."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from data_prep.common.console import escape_what_stdout_lacks


class KnownError(Exception):
    """Base of the errors that end a program with a text, without a traceback."""

    on_every_rank: bool = False  # every rank raises it with the same words, so that rank 0 reports it for all


class BadInput(KnownError, ValueError):
    """Bad input: every problem found, each naming file, line, key and the mend. Entry points exit with code 2."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "BadInput needs at least one problem"
        super().__init__("\n".join(self.problems))

    def __reduce__(self):  # travels between ranks
        return type(self), (self.problems,)


class Failed(KnownError, RuntimeError):
    """The work could not be finished for a reason outside the input (a full disk, a lost rank). Exit code 1."""


def collect(problems: list[str], check: Callable, *args, key: str = "") -> Any:
    """Returns the check's result, or None if it raised BadInput: its problems are added to `problems`.

    key: the key of the run file that the check is about; a problem that does not start with it gets it as a prefix.
    """
    try:
        return check(*args)
    except BadInput as error:
        problems += [text if text.startswith(key) else f"{key}: {text}" for text in error.problems]
        return None


def of_system(error: OSError) -> str:
    """Returns the operating system's words, and the file."""
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def guarded(work: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code. A user's error goes to stderr as text; a bug keeps its traceback."""
    escape_what_stdout_lacks()
    try:
        return work() or 0
    except (Exception, KeyboardInterrupt) as error:
        text, code = report(error)
        print(text, file=sys.stderr)
        return code


def report(error: BaseException) -> tuple[str, int]:
    """Returns the text to print and the exit code for an error at an entry point. Re-raises a bug of ours."""
    if isinstance(error, BadInput):
        head = "error: " if len(error.problems) == 1 else f"error: {len(error.problems)} problems\n  - "
        return head + "\n  - ".join(error.problems), 2
    if isinstance(error, Failed):
        return f"error: {error}", 1
    if isinstance(error, OSError) and error.errno is not None:  # full disk, no permission, ...
        return f"error: {of_system(error)}", 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", 130
    raise error
