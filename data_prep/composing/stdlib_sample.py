"""Docstrings of the installed standard library as chunks of a vector store: real text that every machine has."""

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput, Failed
from data_prep.records import text_key
from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import check_target, write_chunks

MIN_WORDS = 8
# Test suites, tools with copies of other modules, and jokes: no documentation of a library.
SKIPPED = {"test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "antigravity", "this"}
SKIPPED_PARTS = {"test", "tests", "idle_test"}


def sample(path: Path, collection: str, *, limit: int | None = None) -> int:
    """Writes the standard library's docstrings to an embedded Chroma collection and returns their number.

    Sources are parsed, never imported. A chunk: id "module:qualname", text the cleaned docstring, metadata module (the
    top-level module, for splitting), name, qualname, kind (module, class, function, method, topic), signature. Modules
    come in a shuffled but fixed order. limit: only the first chunks. A repeated run changes nothing.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit {limit}: must be 1 or more")
    check_target(StoreConfig("chroma", collection, path=path))
    skipped: Counter[str] = Counter()
    chunks = list(islice(track(_kept(_docstrings(skipped), skipped), "reading docstrings"), limit))
    if not chunks:
        raise Failed(f"no docstring in {_library()}: this Python is installed without its sources")
    for reason, count in skipped.items():
        say(f"left out: {count:,} {reason}")
    listed = json.dumps([[chunk.id, chunk.text, chunk.metadata] for chunk in chunks])
    written = write_chunks(path, collection, chunks, hashlib.sha256(listed.encode()).hexdigest())
    modules = len({chunk.metadata["module"] for chunk in chunks})
    state = "written" if written else "already there, unchanged"
    result(f"{path}: collection {collection}: {len(chunks):,} chunks of {modules} modules {state}")
    return len(chunks)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _kept(chunks: Iterator[Chunk], skipped: Counter[str]) -> Iterator[Chunk]:
    ids: set[str] = set()
    texts: set[int] = set()
    for chunk in chunks:
        key = text_key(chunk.text)
        if len(chunk.text.split()) < MIN_WORDS:
            skipped[f"docstrings of fewer than {MIN_WORDS} words"] += 1
        elif key in texts or chunk.id in ids:
            skipped["docstrings or names that came before"] += 1
        else:
            ids.add(chunk.id)
            texts.add(key)
            yield chunk


def _docstrings(skipped: Counter[str]) -> Iterator[Chunk]:
    names = [name for name in sys.stdlib_module_names if not name.startswith("_") and name not in SKIPPED]
    for top in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        files = _files(top)
        if not files:
            skipped["modules without Python source"] += 1
        for file in files:
            parts = file.relative_to(_library()).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            try:
                with warnings.catch_warnings():  # the library's own invalid escapes are not the user's concern
                    warnings.simplefilter("ignore")
                    tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError, OSError):
                skipped["files that could not be parsed"] += 1
                continue
            yield from _topics(tree, module) if module == "pydoc_data.topics" else _walk(tree, module, top, ())


def _files(top: str) -> list[Path]:
    """Returns the public source files of a top-level module, in order."""
    single, package = _library() / f"{top}.py", _library() / top
    if single.is_file():
        return [single]
    if not (package / "__init__.py").is_file():
        return []
    files = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        private = any(part.startswith("_") and part != "__init__" for part in parts)
        if not private and SKIPPED_PARTS.isdisjoint(parts):
            files.append(file)
    return files


def _walk(node: ast.AST, module: str, top: str, outer: tuple[str, ...]) -> Iterator[Chunk]:
    """Yields the docstring of a module, class or function, then those of its public names (not inside functions)."""
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    documented = is_function or isinstance(node, ast.Module | ast.ClassDef)
    if documented and (text := (ast.get_docstring(node) or "").strip()):
        function = "method" if len(outer) > 1 else "function"
        kind = "module" if not outer else "class" if isinstance(node, ast.ClassDef) else function
        name, qualname = outer[-1] if outer else module.rpartition(".")[2], ".".join((module, *outer))
        signature = f"{node.name}({ast.unparse(node.args)})" if is_function else ""
        metadata = {"module": top, "name": name, "qualname": qualname, "kind": kind, "signature": signature}
        yield Chunk(f"{module}:{'.'.join(outer) or '__doc__'}", text, metadata)
    if is_function:
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield from _walk(child, module, top, (*outer, child.name))
        elif isinstance(child, ast.If | ast.Try):  # names defined for some platforms only
            yield from _walk(child, module, top, outer)


def _topics(tree: ast.Module, module: str) -> Iterator[Chunk]:
    """Yields the texts that `help('TOPIC')` shows: a dict literal in the source."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                metadata = {"module": "pydoc_data", "name": name, "qualname": name, "kind": "topic", "signature": ""}
                yield Chunk(f"{module}:{name}", inspect.cleandoc(text), metadata)
