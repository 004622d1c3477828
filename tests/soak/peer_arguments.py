"""Reads the arguments of other trainers from their installed sources and asks what a run file with each is answered.

    python -m tests.soak.peer_arguments [FOLDER …] [--usage FOLDER …] [--every]

FOLDER: where packages were installed to (`pip install --no-deps --target FOLDER FlagEmbedding tevatron ms-swift`), or
`src` of a checkout; the first that has a package counts. Sources are parsed, never imported. --usage: a folder of
examples and documents for each peer; names come in the order of their share in these, peers counting alike. Prints
the hundred first as docs/reference/wrong_names.md has them, or every one. Exit code 1 where a name is answered nothing.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from data_prep.common.errors import BadInput
from trainer.config.loading import parse_config

PEERS = {  # peer -> (package, files with its argument classes, classes; () for all of them)
    "transformers": ("transformers", ["training_args.py"], ("TrainingArguments",)),
    "sentence-transformers": ("sentence_transformers", ["base/training_args.py"], ("BaseTrainingArguments",)),
    "FlagEmbedding": (
        "FlagEmbedding",
        ["abc/finetune/embedder/AbsArguments.py", "finetune/embedder/*/*/arguments.py"],
        (),
    ),
    "Tevatron": ("tevatron", ["arguments.py", "retriever/arguments.py"], ()),
    "ms-swift": (
        "swift",
        ["arguments/sft_args.py", "arguments/tuner_args.py", "arguments/base_args/*.py", "trainers/arguments.py"],
        (),
    ),
    "peft": ("peft", ["tuners/lora/config.py"], ("LoraConfig",)),
}
LOSSES = ("sentence_transformers", "sentence_transformer/losses/*.py")
TEXTS = (".md", ".sh", ".py", ".yaml", ".rst")
USED = re.compile(r"(?<=--)[a-z]\w+|^\s+[a-z]\w+(?=\s?=[^=])|\b[A-Z]\w+Loss(?=\()", re.M)
GOOD = {"output_dir": "out", "model": {"path": "M"}, "data": {"train": "S"}}


def package(name: str, folders: Iterable[Path]) -> Path | None:
    """Returns the folder of a package: in one of `folders`, or installed here."""
    for folder in folders:
        if (folder / name).is_dir():
            return folder / name
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def classes(home: Path, patterns: list[str]) -> Iterator[ast.ClassDef]:
    for pattern in patterns:
        for path in sorted(home.glob(pattern)):
            yield from (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))


def fields_of(node: ast.ClassDef) -> list[str]:
    """Returns the names of a dataclass's fields."""
    stated = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
    return [target.id for target in stated if isinstance(target, ast.Name) and not target.id.startswith("_")]


def parameters_of(node: ast.ClassDef) -> list[str]:
    """Returns the names of what __init__ takes beside the model."""
    inits = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    names = [arg.arg for each in inits for arg in (*each.args.args, *each.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "model")]


def peer_names(folders: Iterable[Path] = ()) -> dict[str, list[str]]:
    """Returns name -> the peers that have it, of all peers that are there."""
    peers: dict[str, list[str]] = {}
    for peer, (name, patterns, roots) in PEERS.items():
        home = package(name, folders)
        nodes = classes(home, patterns) if home else ()
        peers[peer] = [field for node in nodes if not roots or node.name in roots for field in fields_of(node)]
    if home := package(LOSSES[0], folders):
        losses = [node for node in classes(home, [LOSSES[1]]) if node.name.endswith("Loss")]
        peers["sentence-transformers"] += [name for node in losses for name in (node.name, *parameters_of(node))]
    names: dict[str, list[str]] = {}
    for peer, stated in peers.items():
        for name in dict.fromkeys(stated):
            names.setdefault(name, []).append(peer)
    return names


def shares(names: Iterable[str], folders: Iterable[Path]) -> Counter[str]:
    """Returns name -> its share in the uses of all names, added up over the folders."""
    total: Counter[str] = Counter()
    for folder in folders:
        counts: Counter[str] = Counter()
        for path in folder.rglob("*"):
            if path.suffix in TEXTS and path.is_file():
                counts.update(name.strip() for name in USED.findall(path.read_text(errors="replace")))
        known = {name: counts[name] for name in names}
        total.update({name: count / max(1, sum(known.values())) for name, count in known.items()})
    return total


def said(name: str) -> str:
    """Returns what a run file is answered that has a name as its key, with a text as its value."""
    try:
        parse_config(GOOD | {name: "x"}, "run.yaml")
    except BadInput as error:
        return " ".join(problem.removeprefix("run.yaml: ") for problem in error.problems)
    return "is a key here"


def useless(answer: str) -> bool:
    """True for an answer that only lists the keys of the section."""
    return "unknown key" in answer and "Write " not in answer and "There is no such key. " not in answer


def table(names: Iterable[str], of: dict[str, list[str]]) -> list[str]:
    """Returns the rows of docs/reference/wrong_names.md."""
    answers = {name: said(name).removeprefix(f"unknown key {name!r}. ") for name in names}
    return [f"| `{name}` | {', '.join(of[name])} | {answer} |" for name, answer in answers.items()]


def main(argv: list[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m tests.soak.peer_arguments")
    cli.add_argument("folders", nargs="*", type=Path)
    cli.add_argument("--usage", nargs="+", type=Path, default=[])
    cli.add_argument("--every", action="store_true")
    args = cli.parse_args(argv)
    of = peer_names(args.folders)
    counts = Counter(peer for peers in of.values() for peer in peers)
    share = shares(of, args.usage)
    order = sorted(of, key=lambda name: (-share[name], -len(of[name]), name))
    print("\n".join(table(order if args.every else order[:100], of)))
    nothing = [name for name in order if useless(said(name))]
    print(f"{dict(counts)}, {len(of)} names; answered nothing: {nothing}", file=sys.stderr)
    return 1 if nothing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
