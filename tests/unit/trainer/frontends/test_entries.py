"""Flags, config.json and Python translated into the run file: every name, every problem, and the way back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.sharding.build import shard
from launch.__main__ import main as launch
from tests import tiny
from trainer.__main__ import main
from trainer.config.loading import load_config
from trainer.config.sections import COSINE_OF_PAIRS
from trainer.frontends import auto_shards
from trainer.frontends.auto_shards import as_yaml, prepare
from trainer.frontends.command_line import parse
from trainer.frontends.flags import from_flags
from trainer.frontends.flat_json import from_json
from trainer.frontends.python_api import EmbedderFineTuner, FineTuningConfig
from trainer.model_folder.spec import read_spec


@pytest.fixture
def here(tmp_path, tiny_bert, monkeypatch):
    """The folder a command runs in: a model, and pairs where config.json looks for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text('{"question": "w1", "answer": "w2"}\n')
    (tmp_path / "model").symlink_to(tiny_bert)
    return tmp_path


def flags(**changed: str) -> list[str]:
    asked = {"model_name_or_path": "model", "train_dataset": "data/pairs.jsonl", "output_dir": "out"} | changed
    return [token for name, value in asked.items() for token in (f"--{name}", value)]


def run_of(argv: list[str]):
    return from_flags(parse(argv))


def test_the_defaults_of_the_flags(here):
    args = parse(flags())
    entry = from_flags(args)
    config = entry.config
    assert config.model.finetune == "qlora" and config.model.bits == 4
    assert (config.optim.lr, config.train.epochs, config.data.max_hard_negatives) == (1e-4, 2, 2)
    assert config.loss.name == "infonce" and config.loss.temperature == 0.02
    assert (config.model.lora.r, config.model.lora.alpha, config.model.lora.dropout) == (8, 32, 0.1)
    assert (config.model.query_max_len, config.model.passage_max_len) == (64, 64)
    assert "the model has 64 positions: query_max_len 256 and passage_max_len 1024 is cut to 64" in entry.notes
    assert not args.resume and config.data.train == "out/shards"


def test_lengths_that_fit_are_kept(here):
    entry = run_of(flags(query_max_len="12", passage_max_len="20"))
    assert (entry.config.model.query_max_len, entry.config.model.passage_max_len) == (12, 20)
    assert len(entry.notes) == 1


@given(b=st.integers(1, 64), g=st.integers(1, 8), world=st.integers(2, 16))
def test_the_global_batch_is_b_g_w(b, g, world, tiny_bert):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        asked = flags(
            model_name_or_path=str(tiny_bert), train_dataset=__file__,
            batch_size=str(b), gradient_accumulation_steps=str(g),
        )  # fmt: skip
        entry = run_of(asked)
    assert entry.config.train.batch_size == b * g * world
    assert f"global batch {b} x {g} x {world} = {b * g * world} rows" in entry.notes[0]


def test_every_wrong_flag_is_in_one_error(here):
    wrong = flags(batch_size="two", lr="-1", epochs="3.5", train_dataset="nowhere.jsonl", eval_fraction="1")
    with pytest.raises(BadInput) as error:
        run_of([*wrong, "--finetune_typ", "lora", "--lr", "2", "optim.lr=3", "--neg_nums"])
    text = "\n".join(error.value.problems)
    for part in (
        "--finetune_typ: no such flag. Did you mean '--finetune_type'?",
        "--lr: stands twice",
        "--neg_nums: needs a value",
        "--batch_size: must be a whole number from 1 up (given: two)",
        "--eval_fraction: must be in 0..1, below 1 (given: 1)",
        "--train_dataset: nowhere.jsonl: no such file",
        "optim.lr=3: --lr says so already",
        "--epochs: train.epochs: must be a whole number",
    ):
        assert part in text
    with pytest.raises(BadInput, match="--lr: optim.lr: must be greater than 0"):
        run_of(flags(lr="-1"))
    with pytest.raises(BadInput) as error:
        run_of(["--lr", "1e-4"])
    missing = [problem.partition(":")[0] for problem in error.value.problems if "is missing (" in problem]
    assert missing == ["--model_name_or_path", "--train_dataset", "--output_dir"] and len(error.value.problems) == 3


def test_overrides_change_what_has_no_flag_and_defaults_of_flags(here):
    args = parse([*flags(), "optim.lr=3e-4", "train.precision=bf16", "--resume", "train.batch_size=64"])
    entry = from_flags(args)
    assert (entry.config.optim.lr, entry.config.train.precision, entry.config.train.batch_size) == (3e-4, "bf16", 64)
    assert args.resume and not any(note.startswith("global batch") for note in entry.notes)


def test_lora_on_a_quantised_base_is_qlora(here):
    entry = run_of(flags(finetune_type="lora", quantization_bits="4"))
    assert entry.config.model.finetune == "qlora" and entry.config.model.bits == 4
    assert "--finetune_type lora on a base of 4 bits is qlora" in entry.notes
    with pytest.raises(BadInput, match="quantization_bits: is set, but finetune is full"):
        run_of(flags(finetune_type="full", quantization_bits="4"))
    with pytest.raises(BadInput, match="lora: is set, but finetune is full"):
        run_of(flags(finetune_type="full", lora_r="4"))
    assert run_of(flags(finetune_type="full")).config.model.finetune == "full"


def test_an_adapter_to_go_on_from_takes_the_place_of_the_flags_defaults(here, tiny_bert):
    start = f"model.lora.start={tiny.adapter(here / 'A', tiny_bert, r=16)}"
    entry = run_of([*flags(finetune_type="lora"), start])
    read_spec(entry.config.model, "model")
    assert entry.config.model.lora.dropout == 0.1, "which the adapter does not say"
    for own in (
        [*flags(finetune_type="lora", lora_r="8"), start],
        [*flags(finetune_type="lora"), start, "model.lora.r=8"],
    ):
        with pytest.raises(BadInput, match="model.lora.r: 8, but the adapter .* has 16; leave it out"):
            read_spec(run_of(own).config.model, "model")


def test_which_command_lines_are_flags(capsys):
    assert parse(["--lr=1e-4"]).config is None and parse(["--config", "run.yaml", "--lr", "1"]).config == "run.yaml"
    unknown = ["--config", "run.yaml", "--lrr"]
    for argv, message in ((["optim.lr=1"], "nothing to train: name a run file (--config"), (unknown, "--lrr")):
        with pytest.raises(SystemExit) as stop:
            parse(argv)
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_flags_beside_a_run_file_are_refused_with_what_to_write(here, capsys, name):
    """They were once read and forgotten: the run went on with other values than it was asked for."""
    values = {"output_dir": "out", "model": {"path": "model"}, "data": {"train": "shards"}}
    (here / name).write_text(json.dumps(values if name == "run.json" else FLAT))
    assert main(["--config", name, "--lr", "1e-4", "--epochs=5", "--batch_size", "4"]) == 2
    said = capsys.readouterr().err
    assert "3 problems" in said and "Traceback" not in said
    assert "--lr: is for a run without --config; write optim.lr=1e-4 behind the run file" in said
    assert "--epochs: is for a run without --config; write train.epochs=5 behind the run file" in said
    assert "--batch_size: is for a run without --config; leave it out: the run file says it" in said
    assert not (here / "out").exists() and not (here / "made").exists()


def test_help_is_shown_whatever_stands_beside_it(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--lr", "1", "--help"])
    assert stop.value.code == 0 and "--lora_alpha" in capsys.readouterr().out


FLAT = {
    "model_id": "model", "tokenizer_id": None, "device": "cpu", "dtype": "bfloat16",
    "train": {"batch_size": 4, "epochs": 2, "max_length": 32, "grad_accum_steps": 2, "steps_per_epoch": 3},
    "optim": {"name": "AdamW", "lr": 3e-5, "weight_decay": 0.1, "warmup_ratio": 0.2},
    "data": {}, "output": {"save_dir": "made", "save_name": "one", "save_metrics": True},
}  # fmt: skip


def flat(here, **changed):
    path = here / "config.json"
    path.write_text(json.dumps(FLAT | changed))
    return path


def test_config_json(here):
    entry = from_json(flat(here))
    config = entry.config
    assert (config.output_dir, config.data.train) == ("made/one", "made/one/shards")
    assert (config.train.batch_size, config.train.epochs, config.train.steps_per_epoch) == (8, 2, 3)
    assert (config.model.query_max_len, config.model.passage_max_len) == (32, 32)
    assert (config.train.precision, config.train.device, config.optim.name) == ("bf16", "cpu", "adamw")
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup_ratio) == (3e-5, 0.1, 0.2)
    assert [str(path) for path in entry.datasets] == ["data/pairs.jsonl"]
    assert "no data.pairs_path: data/pairs.jsonl" in entry.notes


def test_config_json_problems_have_lines_and_nearest_names(here):
    path = here / "config.json"
    path.write_text(
        '{\n "model_id": "model",\n "dtype": "bf16",\n "train": {"batch_sise": 4,\n  "epochs": 0},\n'
        ' "data": {"pairs_path": "nowhere.jsonl"},\n "optim": {"name": "sgd"},\n "out": {}\n}'
    )
    with pytest.raises(BadInput) as error:
        from_json(path)
    text = "\n".join(error.value.problems)
    for part in (
        f"{path}:4: train.batch_sise: unknown key. Did you mean 'train.batch_size'?",
        f"{path}:3: dtype: 'bf16' is none of auto, float32",
        f"{path}:5: train.epochs: train.epochs: must be 1 or more",
        f"{path}:7: optim.name: optim.name: must be 'adamw' or 'adamw_8bit'",
        f"{path}:8: out: unknown key.",
        "data.pairs_path: nowhere.jsonl: no such file",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"dtype": ["fp32"]}, "dtype: ['fp32'] is none of auto"),
        ({"data": {"pairs_path": ["a.jsonl"]}}, "data.pairs_path: must be a text (given: ['a.jsonl'])"),
        ({"output": {"save_dir": {"a": 1}}}, "output.save_dir: must be a text"),
        ({"optim": {"name": [None]}}, "optim.name: must be a text"),
    ],
)
def test_config_json_values_of_other_types_are_named(here, changed, problem):
    with pytest.raises(BadInput) as error:
        from_json(flat(here, **changed))
    assert any(problem in one for one in error.value.problems), error.value.problems


def test_a_run_file_in_json_is_no_config_json(here):
    path = here / "run.json"
    path.write_text(json.dumps({"output_dir": "o", "model": {"path": "model"}, "data": {"train": "s"}}))
    assert from_json(path) is None
    path.write_text(json.dumps({"model": {"path": "model"}, "train": {}}))
    assert from_json(path) is None


def translated(loss_fn=None, **changed):
    asked = {"model_name_or_path": "model", "dataset_path": "data/pairs.jsonl", "output_dir": "out"} | changed
    return EmbedderFineTuner(FineTuningConfig(**asked), loss_fn)._translate().config


def module_level(query_embeds, answer_embeds, batch):
    return (query_embeds - answer_embeds).square().sum()


def test_python(here):
    config = translated(num_train_epochs=3, learning_rate=1e-3, wandb_run_name="first")
    assert (config.model.finetune, config.train.epochs, config.optim.lr, config.run_name) == ("lora", 3, 1e-3, "first")
    assert translated("cosine").loss.name == COSINE_OF_PAIRS
    assert translated(train_adapter=False).model.finetune == "full"
    assert translated(in_batch_negatives=True).loss.name == "infonce"
    assert translated(module_level).loss.name == f"{__name__}:module_level"
    assert translated(lambda q, a, b: q.sum()).loss.name == "__main__:loss_fn"
    with pytest.raises(BadInput, match="FineTuningConfig.learning_rate: optim.lr: must be greater than 0"):
        translated(learning_rate=0.0)
    with pytest.raises(BadInput, match='loss_fn=.cosent.: must be a function, None or "cosine"; overrides='):
        translated("cosent")
    with pytest.raises(BadInput, match="leave in_batch_negatives out, or loss_fn"):
        translated("cosine", in_batch_negatives=True)


UNSCORED = '{"question": "w1 w2", "answer": "w3 w4"}\n{"question": "w5 w6", "answer": "w7 w8"}\n'
SCORED = '{"query": "w11", "item": "w12", "score": 0.5}\n{"query": "w13", "item": "w14", "score": 1}\n'


@pytest.mark.parametrize(
    ("files", "asked", "losses", "said"),
    [
        ({"plain": UNSCORED}, {}, ("infonce", {}), "InfoNCE over the batch for 'plain', whose pairs have no score"),
        ({"graded": SCORED}, {}, (COSINE_OF_PAIRS, {}), "'graded', where 2 of 2 pairs have a score"),
        (
            {"plain": UNSCORED, "graded": SCORED},
            {},
            ("infonce", {"graded": COSINE_OF_PAIRS}),
            "'graded', where 2 of 2 pairs have a score; InfoNCE over the batch for 'plain'",
        ),
        ({"graded": SCORED}, {"overrides": ["loss.name=cosent"]}, ("cosent", {}), ""),
        ({"plain": UNSCORED}, {"in_batch_negatives": True}, ("infonce", {}), ""),
    ],
)
def test_without_a_loss_the_scores_of_each_source_decide(here, capsys, files, asked, losses, said):
    for name, text in files.items():
        (here / f"{name}.jsonl").write_text(text)
    shard([here / f"{name}.jsonl" for name in files], here / "shards", eval_fraction=0)
    capsys.readouterr()
    entry = EmbedderFineTuner(FineTuningConfig("model", "shards", "out", **asked))._translate()
    written = load_config(prepare(entry, False))
    for config in (entry.config, written):
        assert (config.loss.name, {name: of.loss.name for name, of in config.sources.items()}) == losses
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loss_fn=None: ")]
    assert len(lines) == bool(said) and (not said or said in lines[0]), lines


def test_python_reaches_every_key_of_the_run_file(here):
    config = translated(overrides=["model.finetune=qlora", "model.lora.targets=all-linear", "optim.ema=0.9"])
    assert (config.model.finetune, config.model.lora.targets, config.optim.ema) == ("qlora", "all-linear", 0.9)
    assert (config.model.lora.r, config.model.lora.alpha) == (8, 32)
    started = translated(overrides=["model.lora.start=adapter"])
    assert not {"r", "alpha"} & started.model.lora.model_fields_set, "the adapter says them"
    with pytest.raises(BadInput) as caught:
        translated(learning_rate=1e-3, overrides=["optim.lr=1e-4", "train.epoch=3"])
    assert "learning_rate says so already" in str(caught.value) and "epoch" in str(caught.value)


@pytest.mark.parametrize("command", ["run", "plan", "doctor", "slurm --time 5"])
def test_the_launchers_commands_say_who_takes_a_config_json(here, capsys, command):
    flat(here)
    name, *more = command.split()
    assert launch([name, "--config", "config.json", *more]) == 2
    assert "torchrun --nproc-per-node N -m trainer --config config.json" in capsys.readouterr().err


@pytest.mark.parametrize("make", [lambda here: run_of(flags()), lambda here: from_json(flat(here))])
def test_the_run_file_beside_a_run_says_the_same(here, make):
    config = make(here).config
    (here / "run.yaml").write_text(as_yaml(config))
    assert load_config("run.yaml") == config


@pytest.mark.parametrize(
    "rows", ['{"sentence1": "w1", "sentence2": "w2"}', '{"query": "w1", "positive": "w2", "stars": 3}']
)
def test_columns_of_other_names_are_renamed_by_data_preparation(here, capsys, rows):
    """The trainer has no flag for it: the message names the command that has."""
    (here / "other.jsonl").write_text(rows.replace("stars", "score") + "\n")
    for more in (["--dry-run"], []):
        assert main([*flags(train_dataset="other.jsonl"), *more]) == 2
        said = capsys.readouterr().err
        assert "--columns" in said and "python -m data_prep shard other.jsonl --output SHARDS --columns" in said
    with pytest.raises(BadInput, match="python -m data_prep shard other.jsonl"):
        EmbedderFineTuner(FineTuningConfig("model", "other.jsonl", "o")).train()


def test_a_problem_of_another_kind_names_no_columns(here, capsys):
    (here / "other.jsonl").write_text('{"question": "w1", "answer": ""}\n')
    assert main([*flags(train_dataset="other.jsonl"), "--dry-run"]) == 2
    assert "--columns" not in capsys.readouterr().err


def test_shards_and_a_run_file_of_the_user_are_not_written_over(here):
    """They are no sign of a run, and an output folder may hold them."""
    entry = EmbedderFineTuner(FineTuningConfig("model", "data/pairs.jsonl", "out"))._translate()
    shard([write(here / "own.jsonl", UNSCORED)], here / "out" / "shards", eval_fraction=0)
    write(here / "out" / "run.yaml", "output_dir: out # mine\n")
    before = {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()}
    with pytest.raises(BadInput) as refused:
        prepare(entry, False)
    assert [problem.split()[1] for problem in refused.value.problems] == ["out/shards", "out/run.yaml"]
    assert all(path.read_bytes() == data for path, data in before.items())
    (here / "out" / "shards").rename(here / "shards")
    with pytest.raises(BadInput, match="--config out/run.yaml"):
        prepare(entry, False)
    (here / "out" / "run.yaml").unlink()
    written = prepare(entry, False)
    assert prepare(run_of(flags(lr="1e-3")), False) == written and load_config(written).optim.lr == 1e-3
    written.write_text(written.read_text() + "run_name: mine\n")
    with pytest.raises(BadInput, match="or was changed"):
        prepare(entry, False)


def test_shards_of_a_killed_command_are_known_and_those_that_failed_leave_no_mark(here, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    entry = EmbedderFineTuner(FineTuningConfig("model", "data/pairs.jsonl", "out"))._translate()
    whole = auto_shards._write
    monkeypatch.setattr(auto_shards, "_write", lambda path, text: whole(path, text) if "begun" in text else killed())
    with pytest.raises(Killed):
        prepare(entry, False)
    assert (here / "out" / "shards" / "manifest.json").is_file()
    monkeypatch.setattr(auto_shards, "_write", whole)
    left = (".shards.unfinished.lock", ".run.yaml.unfinished", ".shards.json.unfinished")
    for name in left:  # of a SIGKILL, or of a rank that is at work
        (here / "out" / name).touch()
    (here / "out" / ".shards.unfinished").mkdir()
    write(here / "data" / "pairs.jsonl", UNSCORED)
    assert load_config(prepare(entry, False)).data.train == "out/shards"
    assert "out/shards: train 2 rows" in capsys.readouterr().out
    assert not any((here / "out" / name).exists() for name in left)
    other = EmbedderFineTuner(FineTuningConfig("model", "data/pairs.jsonl", "failed"))._translate()
    write(here / "data" / "pairs.jsonl", "no record")
    with pytest.raises(BadInput):
        prepare(other, False)
    assert not (here / "failed" / "shards.json").exists()


def write(path, text: str):
    path.write_text(text)
    return path
