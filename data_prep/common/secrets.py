"""Secrets: read from the environment or a `.env` file, and removed from every message."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.common.environment import read_dotenv
from data_prep.common.errors import BadInput

HIDDEN = "[hidden]"


def secret(name: str) -> str | None:
    """Returns an environment variable, else its value in the nearest `.env` from the working folder up, else None.

    The environment is not changed, so a child process does not inherit what only `.env` holds.
    """
    if value := os.environ.get(name):
        return _usable(name, value)
    from dotenv import find_dotenv

    file = find_dotenv(usecwd=True)
    value = read_dotenv(Path(file), name).get(name) if file else None
    return _usable(f"{file}: {name}", value) if value else None


def _usable(name: str, value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise BadInput(f"{name}: holds a space, a line break or a character that no header can carry; set it again")
    return value


def without(text: str, *secrets: str | None) -> str:
    """Returns the text with every secret replaced. For messages of servers and libraries about our requests."""
    for value in secrets:
        if value:
            text = text.replace(value, HIDDEN)
    return text


def url_problem(url: str, flag: str, example: str, refusal: str, query: bool = True) -> str | None:
    """Returns what is wrong with a server's URL. refusal: said of a user or password in it; query: may it have one."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for an invalid port
    except ValueError as error:
        return f"{flag}: {error}"
    if parts.username or parts.password or (parts.query and not query):
        return f"{flag}: {refusal}"
    return None if parts.scheme in ("http", "https") and parts.hostname else f"{flag} {url}: must look like {example}"
