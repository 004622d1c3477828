"""Paths as people write them: `~` is the home folder in files, flags, variables and Python, not only in a shell."""

import argparse
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput, nearest

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # a Path keeps one of the slashes
_VARIABLE = re.compile(r"^\$\w|\$\{\w+\}")  # $HOME/x, /data/${USER}/x


def expanded(path: str) -> str:
    """Returns the path with a leading `~` or `~user` replaced by that home folder.

    Raises BadInput for a home folder that is not known, and for a variable: they would become names of folders.
    """
    if not (path.startswith("~") or _VARIABLE.search(path)) or (path[:2] not in ("~", "~/") and os.path.exists(path)):
        return path
    if not path.startswith("~"):
        variable = _VARIABLE.search(path)[0]
        raise BadInput(
            f"{path}: variables are not replaced in paths; write out what {variable}… stands for, let the shell "
            f"replace it on the command line, or write ./{path} for a folder of that name"
        )
    user = path[1:].partition("/")[0]
    full = os.path.expanduser(path)
    if full.startswith("~") or (not user and os.environ.get("HOME") == ""):
        whose = f"user {user!r}" if user else "this user (HOME is not set)"
        raise BadInput(
            f"{path}: the home folder of {whose} is not known here; write the path out, or ./{path} for a folder of "
            "that name"
        )
    return full


def user_path(path: str | Path) -> Path:
    """Returns the path with its home folder. Raises BadInput like expanded, and for a URL: it would name a folder."""
    if url := _URL.match(str(path)):
        raise BadInput(f"{url[1]}://…: is a URL; here a path of this machine is needed")
    return Path(expanded(str(path)))


def nearest_beside(path: Path) -> str:
    """Returns ` Did you mean 'x'?` for what stands beside a missing path under the nearest name, or an empty string."""
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, siblings)


def with_homes(args: argparse.Namespace, texts: Container[str] = ()) -> argparse.Namespace:
    """Expands every path of parsed flags in place; returns the namespace. texts: flags that are none. Raises BadInput.

    A shell does so only for a word that begins with `~`: not in --output=~/x, in quotes, or from another program.
    """
    for name, value in vars(args).items():
        if name not in texts:
            setattr(args, name, [_expanded(one) for one in value] if isinstance(value, list) else _expanded(value))
    return args


def _expanded(value: Any) -> Any:
    if isinstance(value, Path):
        return user_path(value)
    # a text may be a prompt or a pattern: only what can be nothing but a path
    return expanded(value) if isinstance(value, str) and (value == "~" or value.startswith("~/")) else value
