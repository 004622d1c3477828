"""Prompt files: text with {context} and variables of the user's; doubled braces are literal."""

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
    """A prompt with its variables filled in. parts: literal text, None where the chunk's text goes."""

    parts: tuple[str | None, ...]

    def render(self, context: str) -> str:
        """The prompt for one chunk. Braces in the chunk's text mean nothing."""
        return "".join(context if part is None else part for part in self.parts)


def read_prompt(path: Path, variables: Mapping[str, str]) -> Prompt:
    """The prompt of a file. BadInput lists every unknown placeholder, lone brace and variable that is not used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"--prompt {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"--prompt {path}: is not valid UTF-8; save it as UTF-8") from None
    found: list[str] = []
    used: set[str] = set()
    parts: list[str | None] = [""]
    at = 0
    for match in _BRACES.finditer(text):
        parts[-1] += text[at : match.start()]
        at, name, line = match.end(), match["name"], text.count("\n", 0, match.start()) + 1
        if name is None and len(match[0]) == 2:
            parts[-1] += match[0][0]
        elif name is None:
            found.append(f"{path}:{line}: a single {match[0]!r}; write a literal brace twice: {match[0] * 2}")
        elif name == CONTEXT:
            used.add(name)
            parts += [None, ""]
        elif name in variables:
            used.add(name)
            parts[-1] += variables[name]
        else:
            found.append(f"{path}:{line}: {_unknown(name, variables)}")
    parts[-1] += text[at:]
    if CONTEXT not in used:
        found.append(f"{path}: has no {{{CONTEXT}}}, the place of the chunk's text; put it in")
    found += [
        f"--var {name}: {path} has no {{{name}}}; put it in or leave the variable out"
        for name in variables
        if name not in used and name != CONTEXT
    ]
    if CONTEXT in variables:
        found.append(f"--var {CONTEXT}: is the chunk's text; choose another name")
    if found:
        raise BadInput(found)
    return Prompt(tuple(parts))


def _unknown(name: str, variables: Mapping[str, str]) -> str:
    names = (CONTEXT, *variables)
    known = ", ".join(f"{{{key}}}" for key in names)
    return (
        f"unknown placeholder {{{name}}}; known: {known} (more with --var NAME=TEXT).{nearest(name, names)}"
        " Literal braces are written twice: {{ }}"
    )
