"""Callbacks: a user's own classes whose methods get the events of a run, on rank 0.

- A class has methods for some of EVENTS; each takes one dict, which is the method's own.
- It is made once, without arguments, when the run starts; a resumed run makes it again.
- What a method returns or changes in its dict has no effect. What it raises ends the run.
"""

import copy
import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput, Failed, collect, first_line, nearest
from data_prep.common.files import check
from trainer.config.imports import add_working_folder

EVENTS = ("start", "step", "evaluation", "checkpoint", "end")
METHODS = [f"on_{event}" for event in EVENTS]


def import_callbacks(names: list[str]) -> dict[str, type]:
    """Imports the classes of train.callbacks; returns them by name. Raises BadInput with every problem."""
    problems: list[str] = []
    classes = {name: collect(problems, _imported, name, key="train.callbacks") for name in names}
    check(problems)
    return classes


def _imported(name: str) -> type:
    module, _, attribute = name.partition(":")
    add_working_folder()
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises is about the user's module
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"train.callbacks: {name} cannot be imported ({reason})") from None
    own = [method for method in dir(found) if method.startswith("on_")]
    strange = [method for method in own if method not in METHODS]
    if strange:
        hint = nearest(strange[0], METHODS)
        raise BadInput(
            f"train.callbacks: {name} has {strange[0]}, which is never called.{hint} Known are {', '.join(METHODS)}"
        )
    if not own:
        raise BadInput(f"train.callbacks: {name} has none of the methods {', '.join(METHODS)}")
    return found


class Callbacks:
    """The callbacks of a run. Checkpoints may be finished by another thread: they come with the next event."""

    def __init__(self, names: list[str], run_dir: Path):
        self._run_dir, self._step = run_dir, 0  # the latest event's
        self._written: deque[dict[str, Any]] = deque()
        self._by_name: dict[str, Any] = {}
        for name, kind in import_callbacks(names).items():
            with _naming(name, "when it was made"):
                self._by_name[name] = kind()

    def written(self, folder: Path, step: int) -> None:
        """Notes a whole checkpoint, from any thread."""
        self._written.append({"step": step, "folder": str(folder)})

    def tell(self, event: str, values: dict[str, Any]) -> None:
        """Calls on_<event> of every callback, after those of checkpoints. Raises Failed where one raises."""
        while self._written:
            self._call("checkpoint", self._written.popleft())
        if event in EVENTS:
            self._call(event, values)

    def _call(self, event: str, values: dict[str, Any]) -> None:
        self._step = values.get("step", self._step)
        for name, callback in self._by_name.items():
            method = getattr(callback, f"on_{event}", None)
            if method is None:
                continue
            with _naming(name, f"in on_{event}, step {self._step}"):
                method(copy.deepcopy(values) | {"event": event, "output_dir": str(self._run_dir)})


@contextmanager
def _naming(name: str, when: str) -> Iterator[None]:
    """Turns whatever a callback raises into one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise Failed(
            f"train.callbacks: {name} failed {when} ({reason}); the checkpoints so far are whole: mend it, or leave it "
            "out, and resume"
        ) from None
