"""README, docs/ and --help show commands, run files, records and imports: the product reads each as it stands there.

Nothing is trained. tests/end_to_end runs the commands of README, of docs/how_to/catalogue.md and of data_prep's --help.
"""

import argparse
import importlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import COMMANDS
from data_prep.common.parser import Parser
from data_prep.reading.formats import read_records
from launch.__main__ import COMMANDS as LAUNCH_COMMANDS
from tests.launching import ROOT
from trainer.config.loading import load_config
from trainer.config.yaml_reader import Loader
from trainer.frontends.flags import from_flags
from trainer.frontends.flat_json import from_json

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FILES}
RUN_FILE = {"output_dir": "runs/first", "model": {"path": "M"}, "data": {"train": "shards"}}
MODULES = ("data_prep", "launch", "trainer")
HELP = [
    *(["data_prep", name] for name in COMMANDS),
    *(["launch", name] for name in LAUNCH_COMMANDS),
    ["trainer"],
    *(
        [f"trainer.{name}"]
        for name in [
            "adapt_queries",
            "blend",
            "curve",
            "evaluate",
            "export",
            "merge",
            "mine",
            "reindex",
            "report",
            "search",
        ]
    ),
]


@dataclass(frozen=True)
class Command:
    where: str
    module: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join([self.module, *self.argv])}"[:100]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], re.M | re.S)


def heredocs(name: str) -> list[tuple[str, str]]:
    """(file, text) of every `cat > FILE <<MARK`."""
    found = (re.findall(r"^cat > (\S+) <<'?(\w+)'?\n(.*?)^\2$", block, re.M | re.S) for block in blocks(name, "bash"))
    return [(file, text) for files in found for file, _, text in files]


def commands_in(where: str, text: str) -> list[Command]:
    """Commands of the three packages, also behind torchrun and accelerate launch; not those with a left-out part."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^(?:cat|python -).* <<'?(\w+)'?\n.*?^\1$", "", text, flags=re.M | re.S))
    commands = []
    for line in text.splitlines():
        if re.match(r"\s*(\w+=\S+ )*(python|torchrun|accelerate) ", line) and "…" not in line:
            words = shlex.split(line, comments=True)
            module = words.index("-m") + 1 if "-m" in words else 0
            if module and words[module].partition(".")[0] in MODULES and (argv := words[module + 1 :]):
                commands.append(Command(where, words[module], tuple(argv)))
    return commands


def commands_of_documents() -> list[Command]:
    found = []
    for name, text in TEXTS.items():
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        found += [command for block in blocks(name, "bash") for command in commands_in(name, block)]
        mentions = [command for one in inline for command in commands_in(name, one)]
        found += [command for command in mentions if any(word.startswith("-") for word in command.argv)]
    return found


DOCUMENTS = commands_of_documents()
assert len(DOCUMENTS) > 90 and {command.where for command in DOCUMENTS} >= {"README.md", "data.md", "stores.md"}


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_bert):
    """The folder that a reader types in: models and data that the examples name."""
    monkeypatch.chdir(tmp_path)
    for name in ("M", "MODEL"):
        (tmp_path / name).symlink_to(tiny_bert)
    (tmp_path / "data").mkdir()
    for name in ("F.jsonl", "pairs.jsonl", "data/pairs.jsonl"):
        (tmp_path / name).write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    (tmp_path / "scored.json").write_text('[["a", "b", 0.5]]', encoding="utf-8")
    (tmp_path / "run.yaml").write_text(json.dumps(RUN_FILE), encoding="utf-8")
    return tmp_path


class Parsed(BaseException):
    """Carries the flags out of a command before it does anything."""


def stopped(parse):
    def parse_and_stop(*args):
        raise Parsed(parse(*args))

    return parse_and_stop


@pytest.fixture
def flags_of(monkeypatch):
    """flags_of(command): the flags as the command itself parses them; argparse's own exit where it refuses them."""
    monkeypatch.setattr(Parser, "parse_args", stopped(Parser.parse_args))

    def flags(command: Command) -> argparse.Namespace:
        if command.module == "trainer":
            from trainer.frontends.command_line import parse

            return parse(list(command.argv))
        module = importlib.import_module(command.module)
        name = f"{command.module}.__main__" if hasattr(module, "__path__") else command.module
        with pytest.raises(Parsed) as parsed:
            importlib.import_module(name).main(list(command.argv))
        return parsed.value.args[0]

    return flags


def check(command: Command, args: argparse.Namespace) -> None:
    """The overrides are keys of the run file, and the flags of a run make one."""
    overrides = [] if getattr(args, "module", None) else list(getattr(args, "overrides", None) or ())
    if command.module == "trainer" and args.config is None:
        from_flags(args)
    elif overrides:
        load_config("run.yaml", overrides)
    for text in getattr(args, "sweep", None) or ():
        key, _, values = text.partition("=")
        for value in values.split(","):
            load_config("run.yaml", [f"{key}={value}"])


@pytest.mark.parametrize("command", DOCUMENTS, ids=str)
def test_every_command_of_the_documents_is_read(command, flags_of, here):
    check(command, flags_of(command))


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_the_example_of_every_help_is_read(command, flags_of, here, capsys):
    module, *rest = command
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module if "." in module else f"{module}.__main__").main([*rest, "--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    text = re.split(r"^examples?:", help_text, flags=re.M)[1]
    text = re.sub(r"\n(?!\s*(?:python|torchrun) )", " ", text)  # argparse breaks lines at blanks
    examples = commands_in("--help", text)
    assert examples, help_text
    for example in examples:
        assert example.module == module
        check(example, flags_of(example))


RUN_FILES = [(name, text) for name in TEXTS for text in blocks(name, "yaml")]
RUN_FILES += [(name, text) for name in TEXTS for file, text in heredocs(name) if file.endswith(".yaml")]


@pytest.mark.parametrize(("name", "text"), RUN_FILES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RUN_FILES)])
def test_every_run_file_of_the_documents_is_read(name, text, tmp_path):
    shown = yaml.load(text, Loader=Loader)
    whole = RUN_FILE | shown | {"data": RUN_FILE["data"] | shown.get("data", {})}
    text = text.replace("$MODEL", "M") if "output_dir" in shown else json.dumps(whole)  # as the shell does
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    if "loss" in shown and "name" in shown["loss"]:
        assert config.loss.name == shown["loss"]["name"]


def test_the_config_json_of_the_documents_is_read(here):
    (text,) = blocks("without_a_run_file.md", "json")
    (here / "config.json").write_text(text, encoding="utf-8")
    entry = from_json(Path("config.json"))
    assert entry.config.output_dir == "models/tuned" and entry.config.train.batch_size == 8


def rows_of_the_table() -> list[tuple[str, str]]:
    """(key, default) of each row of the run file's table that states a value as a default."""
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", TEXTS["run_file.md"].partition("## Losses")[0], re.M)
    pairs = []
    for keys, defaults in rows:
        names, values = re.findall(r"`([\w.]+)`", keys), re.findall(r"`[^`]+`|[^,`]+", defaults.replace(", ", ","))
        pairs += [(name, value.strip("`")) for name, value in zip(names, values) if value.startswith("`")]
    return [(key, value) for key, value in pairs if "NAME" not in key]


def test_the_table_of_the_run_file_states_the_defaults(here):
    pairs = rows_of_the_table()
    assert len(pairs) > 25 and {
        ("optim.betas", "[0.9,0.999]"),
        ("optim.eps", "1e-8"),
        ("watch.min_delta", "0"),
        ("model.lora.r", "16"),
    } < {*pairs}
    default = load_config("run.yaml")
    for key, value in pairs:
        assert load_config("run.yaml", [f"{key}={value}"]) == default, f"{key}: not {value} by default"


SHAPES = re.findall(r'`(\{"\w+"[^`{}]*\})`', TEXTS["from_pairs.md"] + TEXTS["data.md"].partition("Unknown keys")[0])
LISTS = ("positives", "negatives", "hard_negatives", "pos", "neg")


@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_every_shape_of_a_row_is_read(shape, tmp_path):
    row = {}
    for key in re.findall(r'"(\w+)"', shape):
        row[key] = {"metadata": {"page": 1}, "score": 0.5}.get(key, [f"a {key}"] if key in LISTS else f"a {key}")
    if "labels" in row:  # of a list of positives and negatives
        row |= {"labels": [1, 0], "positive": ["a positive", "a negative"]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = read_records(path)
    assert record.query.removeprefix("a ") in row and len(record.positives) == 1
    assert len(record.negatives) == len({"negative", "neg", "hard_negatives", "labels"} & row.keys())


def test_the_shapes_of_the_documents_are_found():
    assert len(set(SHAPES)) > 8 and '{"query","negative"}' not in SHAPES


@pytest.mark.parametrize("name", TEXTS)
def test_every_csv_of_the_documents_is_read(name, tmp_path):
    for file, text in heredocs(name):
        if file.endswith(".csv"):
            (tmp_path / file).write_text(text, encoding="utf-8")
            assert len(list(read_records(tmp_path / file))) == len(text.splitlines()) - 1


PYTHON = [(name, text) for name in TEXTS for text in blocks(name, "python")]


@pytest.mark.parametrize(("name", "text"), PYTHON, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PYTHON)])
def test_python_of_the_documents_imports_what_is_there(name, text):
    compile(text, name, "exec")
    if "langchain" in text:
        pytest.importorskip("langchain_core", reason="needs langchain-core, of the extra dev")
    for module, names in re.findall(r"^from ((?:data_prep|trainer)[\w.]*) import ([\w, ]+)$", text, re.M):
        for one in names.split(", "):
            assert hasattr(importlib.import_module(module), one), f"{name}: {module}.{one}"


def test_functions_that_the_documents_name_are_there():
    named = {
        one
        for text in TEXTS.values()
        for one in re.findall(r"`((?:trainer|data_prep)(?:\.\w+){2,})(?:\([^`]*)?`", text)
    }
    assert "trainer.inference.text_encoder.TextEncoder" in named and "trainer.exporting.export_folder.export" in named
    for one in named:
        module, _, name = one.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or (ROOT / f"{one.replace('.', '/')}.py").is_file(), one
