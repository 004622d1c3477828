"""The recipe of a run in plain lines; the default learning rate of each mode; numbers that nobody means."""

import json

import pytest
import yaml

from trainer.__main__ import main
from trainer.config.loading import load_config, parse_config
from trainer.config.recipe import RATES, _numbers, recipe, unusual
from trainer.config.sections import LEARNING_RATES, GuideConfig, LoraConfig, LossConfig, OptimConfig
from trainer.frontends.auto_shards import as_yaml
from trainer.frontends.command_line import parse
from trainer.frontends.flags import from_flags
from trainer.frontends.flat_json import from_json
from trainer.frontends.python_api import EmbedderFineTuner, FineTuningConfig

BASE = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": "t"}}
MODES = ("full", "lora", "qlora")
DEFAULTS = {"full": 2e-5, "lora": 1e-4, "qlora": 1e-4}


def config_of(**sections):
    """A run file; model: keys beside its path."""
    return parse_config(BASE | sections | {"model": {"path": "m", **sections.get("model", {})}}, "test")


# --- the default rate ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optim", [{}, {"lr": None}, {"weight_decay": 0.1}])
def test_a_run_file_without_a_rate_has_that_of_its_mode(mode, optim):
    config = config_of(model={"finetune": mode}, optim=optim)
    assert config.optim.lr == DEFAULTS[mode] == LEARNING_RATES[mode] and not config.optim.states_lr
    assert f"learning rate: {DEFAULTS[mode]:g} (optim.lr, the default of" in recipe(config)[-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lr", [2e-5, 1e-4, 5e-4])
def test_a_stated_rate_is_kept_whatever_the_mode_and_stands_in_the_run_file(mode, lr):
    config = config_of(model={"finetune": mode}, optim={"lr": lr})
    assert config.optim.lr == lr and config.optim.states_lr
    assert f"learning rate: {lr:g} (optim.lr, as stated)" in recipe(config)[-1]
    again = parse_config(yaml.safe_load(as_yaml(config)), "again")
    assert again == config and again.optim.states_lr, "2e-5 of an adapter is no default that may be left out"


@pytest.mark.parametrize("mode", MODES)
def test_a_default_rate_is_not_stated_by_the_run_file_of_a_run_by_flags(mode):
    config = config_of(model={"finetune": mode})
    values = yaml.safe_load(as_yaml(config))
    assert "optim" not in values and parse_config(values, "again") == config
    assert yaml.safe_load(as_yaml(config_of(optim={"eps": 1e-6})))["optim"] == {"eps": 1e-6}


def flags(tmp_path, *more: str):
    given = ("--model_name_or_path", str(tmp_path), "--train_dataset", str(tmp_path / "p.jsonl"), "--output_dir", "o")
    return from_flags(parse([*given, *more])).config


def test_every_way_in_has_the_same_default_rates(tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n")
    assert flags(tmp_path).optim.lr == DEFAULTS["qlora"]
    for mode in MODES:
        assert flags(tmp_path, "--finetune_type", mode).optim.lr == DEFAULTS[mode]
        assert flags(tmp_path, "--finetune_type", mode, "--lr", "3e-3").optim.lr == 3e-3
    flat = {"model_id": str(tmp_path), "data": {"pairs_path": str(tmp_path / "p.jsonl")}}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert from_json(tmp_path / "config.json").config.optim.lr == DEFAULTS["full"]
    assert from_json(tmp_path / "config.json", ["model.finetune=lora"]).config.optim.lr == DEFAULTS["lora"]
    for adapter, mode in ((True, "lora"), (False, "full")):
        asked = FineTuningConfig(str(tmp_path), tmp_path / "p.jsonl", "o", train_adapter=adapter)
        assert EmbedderFineTuner(asked)._translate().config.optim.lr == DEFAULTS[mode]


def test_a_model_section_with_a_problem_of_its_own_is_the_only_problem():
    with pytest.raises(Exception, match="finetune") as caught:
        config_of(model={"finetune": "adapter"})
    assert "optim" not in str(caught.value)


# --- the lines ---


def test_the_recipe_names_mode_precision_loss_temperature_and_rate():
    assert recipe(config_of()) == [
        "mode: full fine-tuning",
        "precision: fp32",
        "loss: infonce, temperature 0.05 (fixed), negatives of the whole batch",
        "learning rate: 2e-05 (optim.lr, the default of full fine-tuning), after a warm-up of 0.1 of the steps falling "
        "to 0 (linear); adamw, weight decay 0.01",
    ]


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({"model": {"finetune": "lora"}}, ["mode: LoRA, rank 16, alpha 32, dropout 0"]),
        (
            {"model": {"finetune": "lora", "lora": {"rslora": True, "dora": True, "r": 4}}},
            ["mode: LoRA, rsLoRA, DoRA, rank 4, alpha 32, dropout 0"],
        ),
        (
            {"model": {"finetune": "qlora", "lora": {"start": "a", "dropout": 0.1}}},
            ["mode: QLoRA on 4 bits, going on from a, dropout 0.1"],
        ),
        ({"model": {"finetune": "qlora", "quantization_bits": 8}}, ["QLoRA on 8 bits"]),
        ({"model": {"freeze": {"embeddings": True, "layers": 3}}}, ["without the embeddings and the first 3 blocks"]),
        ({"train": {"precision": "bf16"}}, ["precision: bf16, autocast over fp32 weights"]),
        ({"loss": {"name": "cosine"}}, ["loss: cosine\n"]),
        ({"loss": {"name": "cosent", "temperature": 0.1}}, ["loss: cosent, temperature 0.1 (fixed)\n"]),
        (
            {"loss": {"name": {"infonce": 1, "kl": 0.5}, "temperature_lr": 0.01, "negatives": "device"}},
            ["1 x infonce + 0.5 x kl, temperature 0.05 (learned from there, rate 0.01), negatives of the own device"],
        ),
        ({"sources": {"a": {"loss": {"name": "cosent"}}}}, ["loss: infonce", "sources.a.loss: cosent, temperature"]),
        ({"loss": {"matryoshka": [8, 32], "directions": "gte"}}, ["directions gte, sizes 32, 8"]),
        ({"optim": {"schedule": "constant", "warmup_ratio": 0}}, ["full fine-tuning), constant; adamw"]),
    ],
)
def test_what_differs_from_the_defaults_is_in_the_lines(sections, lines):
    text = "\n".join(recipe(config_of(**sections))) + "\n"
    assert all(line in text for line in lines), text


def test_a_function_in_place_of_the_losses_is_said():
    text = "\n".join(recipe(config_of(loss={"temperature": 0.1}), own_loss=True))
    assert "loss: the function given to train(), at temperature 0.1" in text and "infonce" not in text


@pytest.mark.parametrize("more", [[], ["model.finetune=lora", "optim.lr=3e5"]])
def test_a_dry_run_prints_the_recipe_and_what_is_unusual(tmp_path, tiny_bert, tiny_shards, capsys, more):
    values = {"output_dir": str(tmp_path / "o"), "model": {"path": str(tiny_bert)}, "data": {"train": str(tiny_shards)}}
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert main(["--config", str(tmp_path / "run.json"), "--dry-run", *more]) == 0
    shown = capsys.readouterr().out
    assert "\n".join(recipe(load_config(tmp_path / "run.json", more))) in shown
    assert ("warning: optim.lr: 300000 is outside the usual range 1e-06 … 0.01 (LoRA" in shown) == bool(more)


# --- numbers that nobody means ---

ABSURD = {
    "optim.lr": [("full", 3e5), ("full", 0.1), ("full", 1e-9), ("lora", 1.0), ("qlora", 1e-8)],
    "optim.weight_decay": [10, 1.0],
    "optim.betas": [[0.999, 0.9], [0.0, 0.999], [0.9, 0.1]],
    "optim.eps": [1.0, 1e-30],
    "optim.warmup_ratio": [1, 0.9],
    "optim.max_grad_norm": [1e-6, 1e4],
    "optim.ema": [0.01],
    "loss.temperature": [50, 20, 1e-6, 2],
    "loss.temperature_lr": [10, 1e-9],
    "loss.mask_margin": [1.5, -0.8],
    "loss.mask_ratio": [0.1, 9],
    "train.epochs": [100000],
    "watch.min_delta": [0.5],
    "watch.tolerance": [5],
    "model.query_max_len": [5],
    "model.passage_max_len": [4],
}
CASES = [(key, value) for key, values in ABSURD.items() for value in values]


def with_value(key: str, value) -> tuple:
    section, name = key.split(".")
    mode = {"finetune": value[0]} if isinstance(value, tuple) else {}
    value = value[1] if isinstance(value, tuple) else value
    sections = {"model": mode} | {section: {name: value} | (mode if section == "model" else {})}
    return config_of(**sections), value


@pytest.mark.parametrize(("key", "value"), CASES, ids=lambda part: str(part))
def test_an_absurd_number_is_one_line_with_key_value_and_usual_range(key, value):
    config, value = with_value(key, value)
    lines = unusual(config, True, 100)
    assert lines and all(line.startswith(f"warning: {key}: ") and "usual range" in line for line in lines)
    wrong = value if isinstance(value, list) else [value]
    assert any(f"{key}: {number:g} is outside" in line for line in lines for number in wrong)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"finetune": "lora", "lora": {"dropout": 0.9}}, "model.lora.dropout: 0.9"),
        ({"finetune": "lora", "lora": {"alpha": 4000}}, "model.lora.alpha: 4000"),
        ({"finetune": "qlora", "lora": {"r": 4096, "alpha": 4096}}, "model.lora.r: 4096"),
        ({"finetune": "lora", "lora": {"r": 64, "alpha": 1000, "rslora": True}}, "model.lora.alpha: 1000"),
    ],
)
def test_absurd_adapters(sections, key):
    [line] = unusual(config_of(model=sections), True, 100)
    assert line.startswith(f"warning: {key} is outside the usual range")


@pytest.mark.parametrize("mode", MODES)
def test_what_people_train_with_is_no_warning(mode):
    assert unusual(config_of(model={"finetune": mode}), True, 1) == []
    for lr in (1e-6, 5e-6, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3):
        for temperature in (0.01, 0.02, 0.05, 0.07, 0.1, 1.0):
            config = config_of(model={"finetune": mode}, optim={"lr": lr}, loss={"temperature": temperature})
            assert unusual(config, True, 1) == []
    least, most = RATES[mode]
    assert least < DEFAULTS[mode] < most


def test_a_temperature_that_is_a_scale_gets_the_number_that_was_meant():
    [line] = unusual(config_of(loss={"temperature": 20}), True, 100)
    assert line.endswith("0.005 … 1 (a scale of 20 is temperature 0.05)")
    assert unusual(config_of(loss={"temperature": 20}), False, 100) == [], "inner products may be of any size"
    assert unusual(config_of(loss={"name": "cosine", "temperature": 20}), True, 100) == [], "the loss has none"
    of_source = config_of(sources={"a": {"loss": {"name": "kl", "temperature": 1e-6, "teacher_temperature": 1e4}}})
    lines = unusual(of_source, True, 100)
    assert [line.split(":")[1] for line in lines] == [
        " sources.a.loss.temperature",
        " sources.a.loss.teacher_temperature",
    ]


@pytest.mark.parametrize(("ema", "steps", "warned"), [(0.9999, 100, True), (0.99, 1000, False), (0.5, 1, False)])
def test_an_average_that_keeps_the_starting_weights_is_said(ema, steps, warned):
    lines = unusual(config_of(optim={"ema": ema}), True, steps)
    assert [("99% of the starting weights" in line) for line in lines] == [True] * warned


JUDGED_OTHERWISE = {
    "schedule", "name", "negatives", "directions", "mask_duplicates", "matryoshka", "targets", "start", "guide",
    "model", "relative_margin",
}  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "section"),
    [("optim", OptimConfig), ("loss", LossConfig), ("loss.guide", GuideConfig), ("model.lora", LoraConfig)],
)
def test_every_number_of_the_recipe_has_a_usual_range(prefix, section):
    masks = {"mask_margin": 0.1, "mask_ratio": 0.9, "guide": {"model": "G"}}
    config = config_of(model={"finetune": "lora"}, loss={"name": {"infonce": 1, "kl": 1}, **masks})
    judged = {key for key, *_ in _numbers(config, True)}
    switches = {name for name, field in section.model_fields.items() if field.annotation is bool}
    missing = {f"{prefix}.{name}" for name in section.model_fields.keys() - switches - JUDGED_OTHERWISE} - judged
    assert not missing, f"a new key of {section.__name__} is judged by nobody: {missing}"
