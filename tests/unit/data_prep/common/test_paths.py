"""Paths as people write them: the home folder, wherever a path is read; never a folder named `~` or `$HOME`."""

import argparse
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from data_prep.common.files import cache_folder
from data_prep.common.paths import expanded, user_path, with_homes
from data_prep.generation.config import QuestionGenerationConfig


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "a home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_home_folder_is_expanded_and_nothing_else(home):
    assert expanded("~/runs/x") == f"{home}/runs/x" and expanded("~") == str(home)
    for path in ("runs/~/x", "x~", "./~/x", "/data/a~b", "org/model", "a$b", "./$HOME/x", ""):
        assert expanded(path) == path


def test_a_folder_that_an_earlier_version_named_like_the_home_is_not_taken_for_it(home):
    Path("~/runs").mkdir(parents=True)
    assert expanded("~/runs") == f"{home}/runs"


def test_a_file_whose_name_only_looks_like_a_home_is_itself():
    Path("~draft.jsonl").touch()
    Path("$x").touch()
    assert expanded("~draft.jsonl") == "~draft.jsonl" and expanded("$x") == "$x"


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "$HOME/x", "${SCRATCH}/x", "/data/${USER}/x"])
def test_what_would_become_the_name_of_a_folder_is_refused(path):
    with pytest.raises(BadInput) as error:
        user_path(path)
    assert path in str(error.value) and f"./{path}" in str(error.value)


def test_a_home_that_is_not_known_is_refused_and_not_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(BadInput, match="HOME is not set"):
        expanded("~/x")


def test_every_path_of_a_command_line_but_no_text(home):
    args = argparse.Namespace(output=Path("~/o"), inputs=[Path("~/i"), Path("j")], model="~/m", query=["~/x"], top=3)
    with_homes(args, texts=("query",))
    assert args.output == home / "o" and args.inputs == [home / "i", Path("j")] and args.model == f"{home}/m"
    assert args.query == ["~/x"] and args.top == 3


def test_variables_that_name_folders(home, monkeypatch):
    monkeypatch.setenv("EMBEDFLEET_CACHE", "~/kept")
    assert cache_folder("gate") == home / "kept" / "gate"
    monkeypatch.delenv("EMBEDFLEET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")
    assert cache_folder("gate") == home / ".cache" / "embedfleet" / "gate"


def test_paths_of_the_python_api(home):
    config = QuestionGenerationConfig(collection_name="c", output_path="~/pairs.jsonl", model="m", path="~/chroma")
    assert config.output == home / "pairs.jsonl" and config.store().path == home / "chroma"


def test_a_command_of_data_preparation_reads_and_writes_at_home(home, capsys):
    from data_prep.__main__ import main

    (home / "pairs.jsonl").write_text('{"anchor": "what is it", "positive": "a thing of some kind"}\n')
    assert main(["compose", "--input=~/pairs.jsonl", "--output=~/mixed.jsonl"]) == 0, capsys.readouterr().err
    assert (home / "mixed.jsonl").is_file() and not Path("~").exists()
    assert main(["compose", "--input=~nobody-of-that-name/p.jsonl", "--output=o.jsonl"]) == 2
    assert "'nobody-of-that-name' is not known" in capsys.readouterr().err
