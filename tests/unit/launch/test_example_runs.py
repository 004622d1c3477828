"""The run files in launch/examples: the commands of their comments prepare the data, and a dry run reads them."""

import json
import re
import shlex

import pytest
import yaml

from data_prep.__main__ import main as data_prep
from launch import flags
from tests import tiny
from tests.launching import ROOT
from trainer.__main__ import main as trainer
from trainer.frontends.command_line import parse

EXAMPLES = sorted((ROOT / "launch" / "examples").glob("*.yaml"))
LENGTHS = ["model.query_max_len=32", "model.passage_max_len=32"]  # a tiny model has 64 positions
BATCH = "train.batch_size=8"  # of some forty rows


def scored(first: int) -> list[dict]:
    return [{"query": f"w{i}", "item": f"w{i + 1} w{i + 2}", "score": i % 20 / 20} for i in range(first, first + 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the comments name."""
    where = tmp_path_factory.mktemp("examples")
    rows = [row | {"negatives": row["negatives"] or ["w1 w2"]} for row in tiny.rows(40)]
    taught = [row | {"teacher_scores": [1.0, *(0.5 for _ in row["negatives"])]} for row in rows]
    files = {"pairs": rows, "faq": rows, "taught": taught, "graded": scored(0), "held_out": scored(100)}
    for name, lines in files.items():
        (where / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return where


def commands(text: str) -> list[list[str]]:
    """The words behind `python -m` of every command in the comments."""
    return [shlex.split(line) for line in re.findall(r"^#   python -m (.*)$", text, re.M)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_what_its_comments_say(path, folder, tmp_path, tiny_bert, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    text = path.read_text(encoding="utf-8")
    (tmp_path / path.name).write_text(text)
    if "decoder" in path.stem:
        tiny.model(tmp_path / "MODEL", "qwen3", "last")
    else:
        (tmp_path / "MODEL").symlink_to(tiny_bert)
    if "quantization_bits" in text:
        pytest.importorskip("bitsandbytes")
    shown = commands(text)
    sharding = [argv[1:] for argv in shown if argv[0] == "data_prep"] or [
        ["shard", "pairs.jsonl", "--output", "shards"]
    ]
    assert [data_prep(argv) for argv in sharding] == [0]
    for module, *argv in shown:
        assert module in ("data_prep", "trainer", "launch")
        if module == "trainer":
            assert parse(argv).config == path.name
        elif module == "launch":
            assert flags.parser().parse_args([word.replace("R", "0") if word == "R" else word for word in argv])
    lengths = LENGTHS if "query_max_len" in text else []
    assert trainer(["--config", path.name, "--dry-run", BATCH, *lengths]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    for name, source in yaml.safe_load(text).get("sources", {}).items():
        assert name in out and (source.get("loss") or {"name": name})["name"] in out


def test_there_is_an_example_of_each_kind():
    wanted = "laptop lora-decoder qlora-one-gpu scored-pairs several-sources teacher-scores zero3-nodes"
    assert [path.stem for path in EXAMPLES] == wanted.split()
