"""Answers to an unknown key, flag, argument or value: its place here, or what is done instead."""

import json
import re

import pytest

from data_prep.common.errors import BadInput
from launch.__main__ import main as launch
from tests.launching import ROOT
from tests.soak.peer_arguments import GOOD, peer_names, said, useless
from trainer import FineTuningConfig
from trainer.__main__ import main as train
from trainer.config.loading import load_config, parse_config
from trainer.config.other_trainers import arguments, find, keys, squashed_path, tables, values
from trainer.config.sections import RunConfig
from trainer.config.unknown_keys import own_keys

SECTIONS = ("", "train.", "optim.", "loss.", "model.", "model.lora.", "data.", "watch.", "checkpoint.")
ROWS = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (.+) \|$", (ROOT / "docs/reference/wrong_names.md").read_text(), re.M)
# key=value as an override -> part of the answer
ANSWERS = {
    "train.eval_steps=100": "Write watch.every_steps (besides those before training",
    "optim.learning_rate=1e-4": "Write optim.lr.",
    "learning_rate=1e-4": "Write optim.lr.",
    "lr=1e-4": "Write optim.lr.",
    "train.lr=1e-4": "Write optim.lr.",
    "train.learning-rate=1e-4": "Write optim.lr.",
    "train.LearningRate=1e-4": "Write optim.lr.",
    "train.bf16=true": "Write train.precision=bf16 (",
    "train.bf16=false": "Leave it out.",
    "train.per_device_train_batch_size=16": "Write train.batch_size (the batch of a whole step over all ranks: per-",
    "train.gradient_accumulation_steps=4": "Write train.batch_size (no accumulation: multiply the batch by it",
    "train.gradient_accumulation_step=4": "Did you mean 'gradient_accumulation_steps'? Write train.batch_size",
    "batch_size=3": "Write train.batch_size (the batch of a whole step over all ranks)",
    "train.save_steps=10": "Write checkpoint.every_steps",
    "train.hub_model_id=me/x": "python -m trainer.export RUN --output FOLDER --push HUB_ID",
    "train.report_to=wandb": "WANDB_PROJECT",
    "train.deepspeed=ds.json": "python -m launch run --engine zero1",
    "loss.scale=20": "Write loss.temperature (1 / scale: scale 20 is 0.05)",
    "data.train_group_size=8": "Write data.max_hard_negatives (hard negatives only: a group of 8 is 7",
    "model.normlized=true": "Write model.normalize",
    "model.sentence_pooling_method=cls": "Write model.pooling",
    "model.max_seq_length=128": "Write model.query_max_len and model.passage_max_len",
    "query_max_len=32": "Write model.query_max_len.",
    "lora_rank=8": "Write model.finetune=lora and model.lora.r.",
    "model.lora_r=8": "model.lora.r.",
    "lora.target_modules=[query]": "target_modules: Write model.finetune=lora and model.lora.targets",
    "lora.r=8": "Did you mean the section 'model.lora'? r: Write model.lora.r.",
    "optimizer.lr=3": "Did you mean the section 'optim'? lr: Write optim.lr.",
    "training_args.learning_rate=3": "Did you mean the section 'train'? learning_rate: Write optim.lr.",
    "training.epochs=3": "Did you mean the section 'train'? epochs: Write train.epochs.",
    "TRAIN.epochs=3": "Did you mean 'train'?",
    "train.Batch-Size=3": "Did you mean 'batch_size'?",
    "train.temprature=1": "Did you mean 'temperature'? Write loss.temperature.",
    "optim.warmup_steps=0.1": "Write optim.warmup_ratio (a share of all steps",
    "optim.warmup_steps=100": "Write optim.warmup_ratio (a share of all steps",
    "loss.margin=0.3": "There is no such key. No loss here has it",
    "loss.negatives_cross_device=false": "Write loss.negatives=device.",
    "model.use_lora=false": "Write model.finetune=full.",
    "sources.a.loss.scale=3": "Write loss.temperature",
    "model.name=x": "Write model.path",
    "name=first": "Write run_name.",
    "train.galore_rank=3": "There is no such key. AdamW",
    "train.min_steps=3": "unknown key 'train.min_steps'. Known here: batch_size",
    "loss.name=mnrl": "Write loss.name=infonce and loss.temperature (its scale is 1 / temperature)",
    "loss.name=MultipleNegativesRankingLoss": "Write loss.name=infonce",
    "loss.name=InfoNCE": "Did you mean 'infonce'?",
    "loss.name=triplet": "There is no such loss; one of yours is package.module:function",
    "loss.name={kl_div: 1, mse: 1}": "name 'mse' is no loss. There is no such loss",
    "loss.name=[infonce, kl]": "several losses are a mapping with weights",
    "loss=MultipleNegativesRankingLoss": 'section (given: "MultipleNegativesRankingLoss"). Write loss.name=infonce and',
    "loss=infonce": 'loss is a section (given: "infonce"): write loss: {name: infonce}',
    "optim=adamw_torch": 'optim is a section (given: "adamw_torch"). Write optim.name=adamw.',
    "train.precision=BF16": "Did you mean 'bf16'?",
    "train.precision=float16": "Write train.precision=fp16.",
    "train.precision=16": "Write train.precision=fp16.",
    "train.precision=true": "train.precision: true is no number or text (given: true): one of fp32, tf32, bf16, fp16",
    "optim.name=adamw_torch": "Write optim.name=adamw.",
    "optim.name=paged_adamw_8bit": "Write optim.name=adamw_8bit",
    "optim.name=muon": "AdamW is the optimizer.",
    "optim.schedule=constant_with_warmup": "Write optim.schedule=constant (optim.warmup_ratio warms up",
    "optim.schedule=wsd": "Linear and cosine fall to 0",
    "optim.betas=0.9": "both, as [0.9, 0.999]",
    "optim.warmup_ratio=100": "a share of all steps: 100 of 1,000 steps are 0.1",
    "model.pooling=last_token": "Write model.pooling=last.",
    "model.pooling=max": "mean, cls, last and weighted_mean are what there is",
    "model.finetune=peft": "Write model.finetune=lora",
    "model.lora.targets=q_proj": "a list, [query, key], or all-linear",
    "model.lora=true": "adapters are model.finetune=lora",
    "model.quantization_bits='4'": "Did you mean 4?",
    "model=BAAI/bge-m3": "write model: {path: BAAI/bge-m3}",
    "data.last_batch=true": "Write data.last_batch=drop.",
    "data.train=[a, b]": "one shard folder, which python -m data_prep shard makes",
    "train.device=cuda:0": "CUDA_VISIBLE_DEVICES",
    "train.epochs=0.5": "a part of one is train.max_steps",
    "train.max_steps=-1": "left out, there is no limit",
    "train.seed=null": "leave it out for the default",
}  # fmt: skip


@pytest.mark.parametrize("override", ANSWERS)
def test_what_an_override_is_answered(override, tmp_path):
    run_file = tmp_path / "run.json"
    run_file.write_text(json.dumps(GOOD))
    with pytest.raises(BadInput) as error:
        load_config(run_file, [override])
    (problem,) = error.value.problems
    assert ANSWERS[override].lower() in problem.lower()
    assert problem.startswith(f"override {override}: ")
    assert "max_steps'?" not in problem


def test_a_key_with_a_dot_in_a_file_is_written_nested(tmp_path):
    text = "output_dir: o\nmodel: {path: m}\ndata: {train: d}\noptim.lr: 1e-4\nmodel.lora.r: 8\n"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load_config(tmp_path / "run.yaml")
    assert "run.yaml:4: unknown key 'optim.lr'. Write it nested: optim: {lr: …}." in str(error.value)
    assert "run.yaml:5: unknown key 'model.lora.r'. Write it nested: model: {lora: {r: …}}." in str(error.value)


def test_a_number_written_as_text_is_a_number():
    assert parse_config(GOOD | {"optim": {"lr": "1e-4"}, "train": {"batch_size": "64"}}, "x").optim.lr == 1e-4


@pytest.mark.parametrize("section", SECTIONS)
def test_every_argument_of_the_peers_installed_here_has_an_answer_in_every_section(section):
    names = peer_names()
    assert {"learning_rate", "MultipleNegativesRankingLoss", "batch_sampler", "use_rslora"} <= names.keys()
    for name in names:
        assert not useless(answered(section, name)), f"{section}{name}"


def answered(section: str, name: str) -> str:
    made = json.loads(json.dumps(GOOD))
    node = made
    for part in section.split(".")[:-1]:
        node = node.setdefault(part, {})
    if name in node:
        return ""
    node[name] = "x"
    try:
        parse_config(made, "run.yaml")
    except BadInput as error:
        return error.problems[0]
    return ""


def test_the_hundred_likeliest_names_are_answered_as_the_table_says():
    assert len({name for name, _, _ in ROWS}) == len(ROWS) == 100
    for name, _, words in ROWS:
        assert said(name).removeprefix(f"unknown key {name!r}. ") == words, "python -m tests.soak.peer_arguments"
        assert not useless(said(name)) and "Did you mean" not in words, "a name that a peer has is no misspelling"


def test_the_table_of_the_docs_is_the_one_of_the_package():
    assert tables() in (ROOT / "docs/reference/migrate.md").read_text()


def test_the_table_says_one_thing_of_a_name_and_only_of_keys_that_there_are():
    for entries in (*[[entry for rows in keys().values() for entry in rows]], *values().values()):
        names = [squashed_path(name) for entry in entries for name in entry.theirs]
        assert len({*names}) == len(names), [name for name in names if names.count(name) > 1]
    for entry in [*arguments(), *(entry for key, rows in values().items() if key != "engine" for entry in rows)]:
        assert {setting.key for setting in (*entry.ours, *entry.beside, *entry.if_false)} <= {*own_keys()}, entry.theirs
        assert entry.ours or entry.remark, entry.theirs
    both = {key for key in own_keys() if find(key.rpartition(".")[2])}
    assert both == {"loss.name", "optim.name", "data.eval", "train.batch_size", "loss.matryoshka", "loss.guide.margin"}


def test_no_section_of_ours_is_an_argument_elsewhere():
    assert not [name for name in RunConfig.model_fields if find(name)]


FLAGS = ["--model_name_or_path", "m", "--output_dir", "o", "--train_dataset", __file__]
OF_FLAGS = {
    "--learning_rate": "Write --lr.", "--learning-rate": "Write --lr.", "--optim.lr": "Write --lr.",
    "--num_train_epochs": "Write --epochs", "--per_device_train_batch_size": "Write --batch_size.",
    "--gradient-accumulation-steps": "Did you mean '--gradient_accumulation_steps'?", "--lora_rank": "--lora_r.",
    "--bf16": "Write train.precision=bf16 (", "--bf16=False": "Leave it out.", "--eval_steps": "watch.every_steps=",
    "--use_lora=false": "Write --finetune_type full.", "--train.batch_size": "Write train.batch_size=… (the batch of",
    "--dryrun": "Did you mean '--dry-run'?",
    "--train_data": "Write --train_dataset", "--epoch": "Write --epochs", "--train_group_size": "Write --neg_nums",
}  # fmt: skip


@pytest.mark.parametrize("flag", OF_FLAGS)
def test_what_an_unknown_flag_is_answered(flag, capsys):
    assert train([*FLAGS, flag]) == 2
    line = next(line for line in capsys.readouterr().err.splitlines() if "no such flag" in line)
    assert f"{flag.partition('=')[0]}: no such flag. " in line and OF_FLAGS[flag] in line


@pytest.mark.parametrize("command", ["trainer", "run", "plan", "doctor"])
def test_an_unknown_flag_beside_a_run_file_names_the_key(command, capsys):
    argv = ["--config", "run.yaml", "--learning_rate", "1e-4", "--optim.lr=3", "--bf16"]
    with pytest.raises(SystemExit) as stop:
        train(argv) if command == "trainer" else launch([command, *argv])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "error: 3 problems" in shown and "usage:" not in shown
    assert "--learning_rate: no such flag. Write optim.lr=…." in shown
    assert "--optim.lr: no such flag. Write optim.lr=…." in shown
    assert "--bf16: no such flag. Write train.precision=bf16 (autocast over fp32 weights)." in shown


ENGINES = {
    "deepspeed": "zero1, zero2 or zero3",
    "fsdp": "Write zero3",
    "Zero2": "'zero2'",
    "zero4": "",
    "multi_gpu": "Write ddp",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_of_another_name(engine, capsys, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(GOOD))
    assert launch(["run", "--config", str(tmp_path / "run.json"), "--engine", engine, "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert ENGINES[engine] in shown and ("Did you mean" in shown) == (engine == "Zero2")


def test_unknown_arguments_in_python_are_answered_together():
    wrong = {
        "lr": 1e-4,
        "bf16": True,
        "train_batch_size": 8,
        "lora_r": 8,
        "use_lora": False,
        "foo": 1,
    }
    with pytest.raises(BadInput) as error:
        FineTuningConfig("m", "d", "o", **wrong, max_seq_length=64, learningRate=1)
    assert [problem.removeprefix("FineTuningConfig: no field ") for problem in error.value.problems] == [
        "'lr'. Write learning_rate.",
        "'bf16'. Write overrides=[\"train.precision=bf16\"] (autocast over fp32 weights).",
        "'train_batch_size'. Write overrides=[\"train.batch_size=…\"] (the batch of a whole step over all ranks).",
        "'lora_r'. Write train_adapter=True and overrides=[\"model.lora.r=…\"].",
        "'use_lora'. Write train_adapter=False.",
        "'foo'. The fields are model_name_or_path, dataset_path, output_dir, train_adapter, num_train_epochs, "
        "learning_rate, wandb_run_name, per_device_train_batch_size, gradient_accumulation_steps, max_length, "
        "steps_per_epoch, in_batch_negatives, seed, overrides",
        "'max_seq_length'. Write max_length (tokens of a query and of a passage, prompt included).",
        "'learningRate'. Did you mean 'learning_rate'?",
    ]
    assert FineTuningConfig("m", dataset_path="d", output_dir="o").seed == 0


def test_unknown_keys_of_a_flat_json_are_answered_in_its_own_names(tmp_path, capsys):
    path = tmp_path / "config.json"
    theirs = {"learning_rate": 1, "per_device_train_batch_size": 1, "bf16": True, "max_steps": 1, "Batch-Size": 1}
    path.write_text(json.dumps({"model_id": "m", "train": theirs, "optim": {"learning_rate": 1}}))
    assert train(["--config", str(path)]) == 2
    shown = capsys.readouterr().err
    for part in (
        "train.learning_rate: unknown key. Write optim.lr.",
        "train.per_device_train_batch_size: unknown key. Write train.batch_size.",
        "train.bf16: unknown key. Write dtype: bfloat16",
        "train.max_steps: unknown key. Write train.max_steps=… behind the command.",
        "train.Batch-Size: unknown key. Did you mean 'train.batch_size'?",
    ):
        assert part in shown


@pytest.mark.parametrize("command", ["trainer", "run", "plan"])
def test_a_flag_without_its_dashes_beside_a_run_file(command, capsys):
    argv = ["--config", "run.yaml", "dryrun" if command != "plan" else "gpu"]
    with pytest.raises(SystemExit):
        train(argv) if command == "trainer" else launch([command, *argv])
    meant = "--gpu" if command == "plan" else "--dry-run"
    assert f"{argv[-1]}: no key=value. Did you mean '{meant}'?" in capsys.readouterr().err


def test_a_flag_without_its_dashes_in_a_run_by_flags(capsys):
    assert train([*FLAGS, "dryrun"]) == 2
    assert capsys.readouterr().err == "error: dryrun: no key=value. Did you mean '--dry-run'?\n"
