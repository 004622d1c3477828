"""The table of what goes together is what the trainer refuses, what the docs show, and what a user is told."""

import json

import pytest

from data_prep.common.errors import BadInput
from launch.__main__ import main as launch_main
from tests.launching import ROOT
from trainer.__main__ import main as train_main
from trainer.config.compatibility import MODES, OPTIONS, REFUSED, check_modes, facts, table
from trainer.config.loading import load_config
from trainer.config.sections import RunConfig
from trainer.distributed.engines import ENGINES

ASKED = {
    "full": {},
    "lora": {"model": {"finetune": "lora"}},
    "qlora 4 bits": {"model": {"finetune": "qlora"}},
    "qlora 8 bits": {"model": {"finetune": "qlora", "quantization_bits": 8}},
    "model.lora.dora": {"model": {"lora": {"dora": True}}},
    "model.base_dtype: bf16": {"model": {"base_dtype": "bf16"}},
    "model.freeze": {"model": {"freeze": {"layers": 1}}},
    "train.gradient_checkpointing": {"train": {"gradient_checkpointing": True}},
    "train.gradient_reduction: chunk": {"train": {"gradient_reduction": "chunk"}},
    "optim.name: adamw_8bit": {"optim": {"name": "adamw_8bit"}},
    "optim.ema": {"optim": {"ema": 0.9}},
}


def values(*wanted: str) -> dict:
    made = {"output_dir": "out", "model": {"path": "m"}, "data": {"train": "d"}, "train": {}, "optim": {}}
    for name in wanted:
        for section, keys in ASKED[name].items():
            made[section] |= keys
    return made


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_refused_where_the_table_says_so_and_only_there(mode, option, engine):
    without = {"model.lora.dora": "lora: is set, but finetune is full", "model.base_dtype: bf16": "no weight is frozen"}
    if mode == "full" and option in without:
        with pytest.raises(ValueError, match=without[option]):
            RunConfig.model_validate(values(mode, option))
        return
    config = RunConfig.model_validate(values(mode, *([option] if option else [])))
    asked = {mode, option} - {None}
    assert set(facts(config)) == asked
    reasons = [why for what, why in REFUSED.items() if {*what} <= asked | {engine}]
    if not reasons:
        check_modes(config, engine)
        return
    with pytest.raises(BadInput) as caught:
        check_modes(config, engine)
    assert len(caught.value.problems) == len(reasons)
    assert all(any(why in problem for problem in caught.value.problems) for why in reasons)


def test_the_docs_show_the_table():
    assert table() in (ROOT / "docs/reference/modes.md").read_text()


def test_bitsandbytes_is_asked_for_where_it_is_missing(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    for name in ("qlora 4 bits", "optim.name: adamw_8bit"):
        with pytest.raises(BadInput, match=r"pip install 'embedfleet\[qlora\]'"):
            check_modes(RunConfig.model_validate(values(name)), "cpu")


def run_file(folder, tiny_bert, tiny_shards, **model) -> str:
    path = folder / "run.json"
    made = {"output_dir": str(folder / "out"), "model": {"path": str(tiny_bert), **model}}
    path.write_text(json.dumps(made | {"data": {"train": str(tiny_shards)}, "train": {"batch_size": 16}}))
    return str(path)


def test_a_refused_combination_is_one_line_before_anything_starts(tmp_path, tiny_bert, tiny_shards, capsys):
    path = run_file(tmp_path, tiny_bert, tiny_shards, finetune="qlora", quantization_bits=8)
    assert launch_main(["run", "--config", path, "--engine", "zero3", "--processes", "2", "--dry-run"]) == 2
    assert "qlora 8 bits does not go with zero3: bitsandbytes holds a whole int8 copy" in capsys.readouterr().err
    path = run_file(tmp_path, tiny_bert, tiny_shards, finetune="lora", freeze={"layers": 1})
    assert train_main(["--config", path]) == 2
    assert "model.freeze does not go with lora" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_keys_that_would_do_nothing_are_refused(tmp_path, tiny_bert, tiny_shards):
    for model, words in (
        ({"lora": {"r": 4}}, "lora: is set, but finetune is full"),
        ({"finetune": "lora", "quantization_bits": 4}, "only qlora quantises"),
        ({"finetune": "lora", "lora": {"targets": []}}, "lora.targets: is empty"),
    ):
        with pytest.raises(BadInput, match=words):
            load_config(run_file(tmp_path, tiny_bert, tiny_shards, **model))


def test_an_adapter_folder_is_no_base_to_train(tmp_path, tiny_bert, tiny_shards, capsys):
    from trainer.config.sections import ModelConfig
    from trainer.model.build import load_embedder
    from trainer.model.save import save_embedder

    config = ModelConfig(path=str(tiny_bert), finetune="lora")
    embedder, tokenizer, spec, _ = load_embedder(config)
    (tmp_path / "final").mkdir()
    save_embedder(tmp_path / "final", dict(embedder.stored()), embedder, tokenizer, spec)
    assert train_main(["--config", run_file(tmp_path, tmp_path / "final", tiny_shards)]) == 2
    assert "model.lora.start to this folder" in capsys.readouterr().err
