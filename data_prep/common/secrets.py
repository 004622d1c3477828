"""Secrets: from the environment or a `.env` file, and out of every message."""

import os

from data_prep.common.errors import BadInput

HIDDEN = "[hidden]"


def secret(name: str) -> str | None:
    """The value of an environment variable, else of the nearest `.env` from the working folder upwards; None if unset.

    The environment is not changed, so a child process does not inherit what only `.env` holds.
    """
    if value := os.environ.get(name):
        return _usable(name, value)
    from dotenv import dotenv_values, find_dotenv

    file = find_dotenv(usecwd=True)
    if not file:
        return None
    try:
        value = dotenv_values(file).get(name)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{file}: cannot be read ({type(error).__name__}); it must be UTF-8 lines of NAME=value"
        ) from None
    return _usable(name, value) if value else None


def _usable(name: str, value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise BadInput(f"{name}: holds a space, a line break or a character that no header can carry; set it again")
    return value


def without(text: str, *secrets: str | None) -> str:
    """The text with every secret in it replaced; for what a server or library says about a request that held one."""
    for value in secrets:
        if value:
            text = text.replace(value, HIDDEN)
    return text
