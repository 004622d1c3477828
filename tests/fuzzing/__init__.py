"""Fuzzing: valid inputs with mutations that real files, servers and shells show, one module per target.

Every target has CASES, a hypothesis strategy, and check(case, folder), which raises for anything but a clean answer.
tests/soak/fuzz.py runs them for minutes, tests/unit/test_fuzzing.py for seconds.
"""

from importlib import import_module
from types import ModuleType

TARGETS = ("rows", "answers", "pages", "sets", "run_files", "environments")


def target(name: str) -> ModuleType:
    return import_module(f"tests.fuzzing.{name}")
