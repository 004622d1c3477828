"""Words that slow a reader down, in docstrings, messages and documents; the list of those still there may only shrink.

- Looks for the first words and phrases that hide the subject of a sentence. `made`, `found` and `taken` are left to
  the reader: they have plain uses too.
- tests/unit/plain_english.json holds the number still allowed in each file. `python -m tests.unit.test_plain_english`
  lowers it to what is there, and never raises it.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching import ROOT

ALLOWED = ROOT / "tests" / "unit" / "plain_english.json"
FIRST = re.compile(r"(What|Whether|Of|As|Which|How)\b")  # of a docstring
PHRASES = re.compile(
    r"\b(told|tells? apart|(?:is|are|was|were|be|it) said|held(?![ -](?:out|back)\b)|laid|stands? in|lies there|"
    r"at hand|lets? be|all the same)\b",
    re.I,
)
PACKAGES = ("benchmarks", "data_prep", "launch", "tests", "trainer")  # of tests and benchmarks the first words only
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.M | re.S)


def files() -> list[Path]:
    packages = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted([*packages, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def violations(path: Path) -> list[str]:
    """Returns a line for each: its number and the word."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        plain = CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
        return [f"{plain[: one.start()].count(chr(10)) + 1}: {one[0]!r}" for one in PHRASES.finditer(plain)]
    tree = ast.parse(text)
    openings = [(doc.lineno, match[0]) for doc in _docstrings(tree) if (match := FIRST.match(doc.value))]
    if path.relative_to(ROOT).parts[0] in ("tests", "benchmarks"):
        return [f"{line}: {word!r}" for line, word in openings]
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    phrases = [
        (node.lineno + node.value[: one.start()].count("\n"), one[0])
        for node in strings
        if " " in node.value  # no name, key or pattern
        for one in PHRASES.finditer(node.value)
    ]
    return [f"{line}: {word!r}" for line, word in sorted([*openings, *phrases])]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_has_more_than_the_list_allows():
    allowed = json.loads(ALLOWED.read_text())
    found = {name_of(path): violations(path) for path in files()}
    more = {name: lines for name, lines in found.items() if len(lines) > allowed.get(name, 0)}
    listed = "\n".join(f"{name} ({allowed.get(name, 0)} allowed): {'; '.join(lines)}" for name, lines in more.items())
    assert not more, f"say it plainly (the thing first, the field's word):\n{listed}"


def test_the_list_names_no_file_that_is_clean():
    allowed = json.loads(ALLOWED.read_text())
    gone = [name for name in allowed if not (ROOT / name).is_file()]
    assert not gone and all(count > 0 for count in allowed.values()), gone


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('def f():\n    """What a run holds."""\n', 1),
        ('def f():\n    """Returns what is held on a rank, as it is said."""\n', 2),
        ('def f():\n    """Returns the held-out queries."""\n', 0),
        ('say("nothing is told")\nkey = "told"\n', 1),
    ],
)
def test_it_sees_them(tmp_path, monkeypatch, text, count):
    (tmp_path / "file.py").write_text(text)
    monkeypatch.setattr("tests.unit.test_plain_english.ROOT", tmp_path)
    assert len(violations(tmp_path / "file.py")) == count


def lower() -> None:
    """Writes the list anew: no file gets more than it had."""
    allowed = json.loads(ALLOWED.read_text()) if ALLOWED.exists() else None
    counts = {name_of(path): len(violations(path)) for path in files()}
    if allowed is not None:
        counts = {name: min(count, allowed.get(name, 0)) for name, count in counts.items()}
    left = {name: count for name, count in counts.items() if count}
    ALLOWED.write_text(json.dumps(left, indent=1) + "\n")
    print(f"{sum(left.values())} in {len(left)} files")


if __name__ == "__main__":
    lower()
