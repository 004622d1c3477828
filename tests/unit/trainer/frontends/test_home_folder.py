"""`~` in run files, overrides, flags, config.json and Python: always the home folder."""

import json
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from trainer.config.loading import load_config
from trainer.distributed.launcher_claims import accelerate_default
from trainer.frontends.command_line import parse
from trainer.frontends.flags import from_flags
from trainer.frontends.flat_json import from_json, load_run_file
from trainer.frontends.python_api import EmbedderFineTuner, FineTuningConfig

RUN = """output_dir: ~/runs/x
model: {path: ~/m, tokenizer: ~/t, finetune: lora, lora: {start: ~/a}}
data: {train: ~/s, eval: ~/e, general: ~/g}
sources: {faq: {eval: ~/f}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, tiny_bert):
    """A home folder with a model and records."""
    folder = tmp_path / "a home"
    folder.mkdir()
    (folder / "m").symlink_to(tiny_bert)
    (folder / "pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n')
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def paths_of(config) -> list[str]:
    model, data = config.model, config.data
    own = [config.output_dir, model.path, model.tokenizer, model.lora.start]
    return [*own, data.train, data.eval, data.general, config.sources["faq"].eval]


def test_every_path_of_a_run_file(home):
    Path("run.yaml").write_text(RUN)
    names = ("runs/x", "m", "t", "a", "s", "e", "g", "f")
    assert paths_of(load_config("run.yaml")) == [f"{home}/{name}" for name in names]


def test_a_run_file_at_home_with_overrides(home):
    (home / "run.yaml").write_text(RUN)
    for load in (load_config, load_run_file):
        config = load("~/run.yaml", ["output_dir=~/other", "data.train=~/rows"])
        assert (config.output_dir, config.data.train) == (f"{home}/other", f"{home}/rows")


def test_a_home_that_is_not_known_is_named_with_line_and_key():
    Path("run.yaml").write_text(RUN.replace("output_dir: ~", "output_dir: ~nobody-of-that-name"))
    with pytest.raises(BadInput, match=r"run.yaml:1: output_dir: ~nobody-of-that-name/runs/x: the home folder of user"):
        load_config("run.yaml")


def test_a_variable_is_named_with_the_mend():
    Path("run.yaml").write_text(RUN.replace("train: ~", "train: $SCRATCH"))
    with pytest.raises(BadInput, match=r"run.yaml:3: data.train: .*variables are not replaced"):
        load_config("run.yaml")


def test_flags(home):
    typed = ["--model_name_or_path=~/m", "--train_dataset=~/pairs.jsonl", "--output_dir=~/out"]
    entry = from_flags(parse([*typed, "--finetune_type", "lora"]))
    assert (entry.config.model.path, entry.config.output_dir) == (f"{home}/m", f"{home}/out")
    assert entry.datasets == [home / "pairs.jsonl"] and entry.config.data.train == f"{home}/out/shards"


def test_a_flat_config_json(home):
    values = {"model_id": "~/m", "data": {"pairs_path": "~/pairs.jsonl"}, "output": {"save_dir": "~/runs"}}
    (home / "config.json").write_text(json.dumps(values))
    entry = from_json(Path("~/config.json"))
    assert entry.datasets == [home / "pairs.jsonl"] and entry.config.output_dir == f"{home}/runs/run"


def test_python(home):
    config = FineTuningConfig("~/m", "~/pairs.jsonl", Path("~/out"))
    entry = EmbedderFineTuner(config)._translate()
    assert entry.datasets == [home / "pairs.jsonl"] and entry.config.output_dir == f"{home}/out"
    with pytest.raises(BadInput, match="FineTuningConfig.dataset_path: ~nobody"):
        EmbedderFineTuner(FineTuningConfig("~/m", "~nobody-of-that-name/p.jsonl", "out"))._translate()


def test_accelerates_default_config(home):
    assert accelerate_default({"HF_HOME": "~/hf"}) == home / "hf" / "accelerate" / "default_config.yaml"
