"""Prompt files: text with {context} and the user's variables. Doubled braces are literal."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput, nearest

CONTEXT = "context"
EXAMPLE = Path(__file__).parent / "prompts" / "questions.txt"  # shipped with the package
_BRACES = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}\n]*)\}|[{}]")


@dataclass(frozen=True)
class Prompt:
    """A prompt with its variables filled in."""

    parts: tuple[str | None, ...]  # literal texts; None stands for the chunk's text

    def render(self, context: str) -> str:
        """Returns the prompt for one chunk. Braces in the chunk's text are literal."""
        return "".join(context if part is None else part for part in self.parts)


def read_prompt(path: Path, variables: Mapping[str, str]) -> Prompt:
    """Reads a prompt file. BadInput lists every unknown placeholder, single brace and unused variable."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"--prompt {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"--prompt {path}: is not valid UTF-8; save it as UTF-8") from None
    problems: list[str] = []
    used: set[str] = set()
    parts: list[str | None] = [""]
    at = 0
    for match in _BRACES.finditer(text):
        parts[-1] += text[at : match.start()]
        at, name, line = match.end(), match["name"], text.count("\n", 0, match.start()) + 1
        if name is None and len(match[0]) == 2:
            parts[-1] += match[0][0]
        elif name is None:
            problems.append(f"{path}:{line}: a single {match[0]!r}; write a literal brace twice: {match[0] * 2}")
        elif name == CONTEXT:
            used.add(name)
            parts += [None, ""]
        elif name in variables:
            used.add(name)
            parts[-1] += variables[name]
        else:
            problems.append(f"{path}:{line}: {_unknown(name, variables)}")
    parts[-1] += text[at:]
    if CONTEXT not in used:
        problems.append(f"{path}: has no {{{CONTEXT}}}, the place of the chunk's text; put it in")
    problems += [
        f"--var {name}: {path} has no {{{name}}}; put it in or leave the variable out"
        for name in variables
        if name not in used and name != CONTEXT
    ]
    if CONTEXT in variables:
        problems.append(f"--var {CONTEXT}: is the chunk's text; choose another name")
    if problems:
        raise BadInput(problems)
    return Prompt(tuple(parts))


def _unknown(name: str, variables: Mapping[str, str]) -> str:
    names = (CONTEXT, *variables)
    known = ", ".join(f"{{{key}}}" for key in names)
    return (
        f"unknown placeholder {{{name}}}; known: {known} (more with --var NAME=TEXT).{nearest(name, names)}"
        " Literal braces are written twice: {{ }}"
    )
