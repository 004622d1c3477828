"""Definitions of this subject."""

from collections.abc import Callable

from data_prep.common.errors import BadInput


def _collect(problems: list[str], check: Callable, *args, key: str = ""):
    """The check's result; its problems are collected, each under the key of the run file that it is about."""
    try:
        return check(*args)
    except BadInput as error:
        problems += [text if text.startswith(key) else f"{key}: {text}" for text in error.problems]
        return None
