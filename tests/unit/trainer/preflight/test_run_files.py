"""Run files that cannot be read, overrides that do not fit, and functions and packages that cannot be imported."""

import json
import sys

import pytest

from data_prep.common.errors import BadInput
from launch.__main__ import main as launch_main
from tests.unit.trainer.preflight.helpers import graded_pairs
from trainer.__main__ import main as train_main
from trainer.config.loading import load_config
from trainer.config.yaml_reader import override
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs

TEXTS = {
    "not YAML": ("run.yaml", "model: [", "not valid YAML"),
    "not JSON": ("run.json", '{"model": ', "not valid JSON"),
    "a list": ("run.yaml", "- model", "must be a mapping"),
    "empty": ("run.yaml", "", "run.yaml: is empty; write one with: python -m launch init"),
    "a tab": ("run.yaml", "model:\n\tpath: m", "run.yaml:2: not valid YAML: a line is indented with a tab"),
    "an open brace": ("run.yaml", "model: {path: m\ndata: {}", "parsing a flow mapping that begins in line 1"),
    "a key twice": ("run.yaml", "output_dir: a\noutput_dir: b\n", "line 2: key 'output_dir' stands here and on line 1"),
    "wrong ending": ("run.toml", "x", "ends in .yaml"),
    "a JSON key twice": ("run.json", '{"output_dir": "a", "output_dir": "b"}', "key 'output_dir' stands twice"),
    "a key that is a list": ("run.yaml", "? [1]\n: 2\n", "a key must be a plain word"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_unreadable_run_files(run, capsys, case):
    name, text, words = TEXTS[case]
    assert train_main(["--config", run.write(text, name)]) == 2
    assert words in capsys.readouterr().err


OVERRIDES = {"no value": "optim.lr", "unknown": "optim.rl=1", "not a section": "output_dir.x=1", "bad": "optim.lr=[1"}


@pytest.mark.parametrize("case", OVERRIDES)
def test_bad_overrides(run, capsys, case):
    assert train_main(["--config", run.write(), OVERRIDES[case]]) == 2
    assert OVERRIDES[case].split("=")[0] in capsys.readouterr().err


def test_a_bad_override_is_not_blamed_on_the_file(run, capsys):
    assert train_main(["--config", run.write(), "train.batch_size=1"]) == 2
    assert "override train.batch_size=1: train.batch_size: must be" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["query: ", 'it\'s a "query": $HOME', "- a list to YAML"])
def test_an_override_is_the_text_that_the_shell_leaves(prompt):
    values = {}
    assert override(values, f"model.query_prompt={prompt}") is None
    assert values == {"model": {"query_prompt": prompt}}


def test_all_problems_are_told_at_once(run, capsys):
    run.values["train"] |= {"epochs": 0, "batchsize": 3}
    run.values["optim"] = {"lr": 0}
    assert train_main(["--config", run.write()]) == 2
    shown = capsys.readouterr().err
    assert "3 problems" in shown and "epochs" in shown and "batchsize" in shown and "optim.lr" in shown
    run.values |= {"train": {"batch_size": 8}, "optim": {}, "model": {"path": "./no"}, "data": {"train": "./nothing"}}
    assert train_main(["--config", run.write()]) == 2
    shown = capsys.readouterr().err
    assert "model.path" in shown and "nothing" in shown


def test_files_as_people_write_them(run):
    from trainer.config.loading import load_config

    text = json.dumps(run.values, indent="\t")
    assert load_config(run.write(text)).train.batch_size == 8
    yaml = "output_dir: o\nmodel: {path: m}\ndata: {train: t}\ntrain:\n"
    assert load_config(run.write(yaml, "run.yaml"), ["train.epochs=2"]).train.epochs == 2
    for name, content in (("run.json", text), ("run.yaml", yaml)):  # Windows editors put a byte order mark first
        assert load_config(run.write("\ufeff" + content, name)) == load_config(run.write(content, name))


def test_a_missing_run_file(capsys):
    assert train_main(["--config", "nowhere.yaml"]) == 2
    assert "no such run file" in capsys.readouterr().err


FUNCTIONS = {
    "no such function": (
        "def other(): ...",
        "mine:f cannot be imported (AttributeError: module 'mine' has no",
    ),
    "a module that does not load": ("import nowhere", "mine:f cannot be imported (ModuleNotFoundError"),
    "a module that is no Python": ("def f(:", "mine:f cannot be imported (SyntaxError"),
    "no function": ("f = 1", "mine:f is not a function"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_users_function_that_cannot_be_imported(run, capsys, monkeypatch, case):
    """Told by the trainer, which imports it. It stands in the folder that the command runs in."""
    monkeypatch.chdir(run.folder)
    monkeypatch.setattr("sys.path", list(sys.path))
    sys.modules.pop("mine", None)
    text, words = FUNCTIONS[case]
    (run.folder / "mine.py").write_text(text)
    run.values["loss"] = {"name": "mine:f"}
    assert train_main(["--config", run.write(), "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error") == 1 and words in shown and "Traceback" not in shown
    assert launch_main(["run", "--config", run.write(), "--dry-run"]) == 0, "the launcher does not import it"


def test_the_launchers_checks_import_no_module_of_the_user(run, monkeypatch):
    """It may import torch, and its package with it."""
    monkeypatch.chdir(run.folder)
    monkeypatch.setattr("sys.path", list(sys.path))
    (run.folder / "ours").mkdir()
    for name in ("__init__", "losses"):
        (run.folder / "ours" / f"{name}.py").write_text("raise RuntimeError('imported')")
    run.values["loss"] = {"name": "ours.losses:f"}
    assert launch_main(["run", "--config", run.write(), "--dry-run"]) == 0


def test_a_function_in_python_needs_nothing_of_the_run_files_loss(run):
    graded_pairs(run)
    config = load_config(run.write())
    check_run(Inputs(config), resume=False, own_loss=True)
    with pytest.raises(BadInput, match="carry a score"):
        check_run(Inputs(config), resume=False)


def test_a_hidden_package_is_named(tmp_path):
    from tests.launching import run as start

    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text("")
    code = "import sys, trainer.config.imports as c; sys.path.{} ; c.check_packages()"
    behind = start("-c", code.format(f"append({str(tmp_path)!r})"))
    assert behind.returncode == 0, behind.both
    hiding = start("-c", code.format(f"insert(0, {str(tmp_path)!r})"))
    assert "'launch' of embedfleet is shadowed by" in hiding.both
