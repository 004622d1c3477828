"""Collects the problems of several checks into one error."""

from collections.abc import Callable

from data_prep.common.errors import BadInput


def collect(problems: list[str], check: Callable, *args, key: str = ""):
    """Returns the check's result, or None if it raised BadInput: its problems are added to `problems`.

    key: the key of the run file that the check is about; a problem that does not start with it gets it as a prefix.
    """
    try:
        return check(*args)
    except BadInput as error:
        problems += [text if text.startswith(key) else f"{key}: {text}" for text in error.problems]
        return None
