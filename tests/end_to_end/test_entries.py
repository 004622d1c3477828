"""The five ways people start a run elsewhere, word for word: flags, merge, config.json, Python, scored triples."""

import json
import math
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests import forked, tiny
from tests.end_to_end.runs import events
from tests.launching import run
from trainer.__main__ import main
from trainer.merge import main as merge

FLAGS = shlex.split(
    "--model_name_or_path M --finetune_type lora --train_dataset F.jsonl --output_dir O --batch_size 2 --lr 1e-4 "
    "--epochs 3 --neg_nums 1 --temperature 0.02 --query_max_len 128 --passage_max_len 1000 --save_on_epoch_end 1 "
    "--warmup_proportion 0.05"
)
PROMISED = (
    "run.yaml", "run.json", "logs.jsonl", "detailed_training_logs.json", "training_losses.json",
    "training_summary_report.json", "final/modules.json", "final/1_Pooling/config.json", "final/tokenizer.json",
    "final/training_config.json",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, tiny_bert, monkeypatch):
    """The folder people work in: a model M, records F.jsonl, scored.json, data/pairs.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "M").symlink_to(tiny_bert)
    rows = tiny.rows(12)
    lists = [{"query": r["query"], "pos": r["positives"], "neg": r["negatives"]} for r in rows]
    (tmp_path / "F.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    (tmp_path / "data").mkdir()
    pairs = [{"question": r["query"], "answer": r["positives"][0]} for r in rows]
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    scored = [[r["query"], r["positives"][0], (i % 5) / 4] for i, r in enumerate(rows)]
    (tmp_path / "scored.json").write_text(json.dumps(scored))
    return tmp_path


def whole(out):
    """Everything that a run promises is there."""
    for name in PROMISED:
        assert (out / name).is_file(), name
    assert list((out / "runs").glob("events.out.tfevents.*"))


def test_flags_straight_from_jsonl_resumed_by_their_run_file_and_merged(here, capfd):
    assert main(FLAGS) == 0
    said = capfd.readouterr().err
    out = here / "O"
    whole(out)
    assert "global batch 2 x 1 x 1 = 2 rows" in said
    assert "the model has 64 positions: query_max_len 128 and passage_max_len 1000 is cut to 64" in said
    negatives = [len(row["negatives"]) for row in tiny.rows(12)]
    assert f"{negatives.count(2)} hard negatives of {negatives.count(2)} rows stay out of each epoch" in said
    assert f"{negatives.count(0)} rows have fewer and train on those they have" in said
    assert len(events(out)) == 3 * 6 and events(out)[0]["temperature"] == 0.02
    # never padded: every epoch embeds a query, a positive and at most one negative for each row
    assert sum(event["texts"] for event in events(out)) == 3 * sum(2 + min(n, 1) for n in negatives)
    assert len(list(out.glob("checkpoint-epoch-*"))) == 3

    adapter = out / "final" / "adapter_model.safetensors"
    expected = load_file(adapter)
    spelt = "--base_model_path M --lora_adapter_path O/final/adapter_model.safetensors --output_path merged"
    assert merge([*spelt.split(), "--training_precision", "float32"]) == 0
    assert (here / "merged" / "model.safetensors").is_file()
    for folder in ("final", "checkpoint-epoch-2", "checkpoint-epoch-3"):
        shutil.rmtree(out / folder)
    assert main(["--config", "O/run.yaml", "--resume"]) == 0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(adapter).items())
    assert main(FLAGS) == 2 and main([*FLAGS, "--resume"]) == 0  # a run is there; it is finished
    with (here / "F.jsonl").open("a") as file:
        file.write('{"query": "w1 w2", "pos": ["w3"], "neg": []}\n')
    shutil.rmtree(out / "final")
    assert main([*FLAGS, "--resume"]) == 2
    assert "F.jsonl: not what the run in O began with" in capfd.readouterr().err


WORD_FOR_WORD = (
    "-m trainer --model_name_or_path M --finetune_type lora --train_dataset F.jsonl --output_dir O --batch_size 2 "
    "--lr 1e-4 --epochs 3 --neg_nums 4 --temperature 0.02 --query_max_len 128 --passage_max_len 1000 "
    "--save_on_epoch_end 1 --warmup_proportion 0.05 --quantization_bits 4 --lora_r 8 --lora_alpha 32 --lora_dropout 0.1"
)
MERGE = (
    "-m trainer.merge --base_model_path M --lora_adapter_path O/final/adapter_model.safetensors --output_path merged "
    "--training_precision bfloat16"
)


def test_flags_with_a_quantised_base_and_its_merge_word_for_word(here):
    pytest.importorskip("bitsandbytes")
    done = run(*WORD_FOR_WORD.split(), cwd=here)
    assert done.returncode == 0, done.both[-3000:]
    assert "--finetune_type lora on a base of 4 bits is qlora" in done.both
    whole(here / "O")
    negatives = [len(row["negatives"]) for row in tiny.rows(12)]
    assert sum(event["texts"] for event in events(here / "O")) == 3 * sum(2 + n for n in negatives)
    values = json.loads((here / "O" / "final" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["lora_dropout"]) == (8, 32, 0.1)
    merged = run(*MERGE.split(), cwd=here)
    assert merged.returncode == 0, merged.both[-3000:]
    assert {tensor.dtype for tensor in load_file(here / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def test_epochs_that_are_cut_and_not_all_kept(here):
    assert main([*FLAGS, "--steps_per_epoch", "2", "checkpoint.keep_epochs=1"]) == 0
    assert len(events(here / "O")) == 3 * 2
    assert [path.name for path in (here / "O").glob("checkpoint-*")] == ["checkpoint-epoch-3"]


def test_a_look_at_a_run_by_flags_writes_nothing(here, capsys):
    assert main([*FLAGS, "--dry-run"]) == 0
    assert "global batch 2" in capsys.readouterr().out
    assert not (here / "O").exists()


def test_config_json(here):
    values = {
        "model_id": "M", "tokenizer_id": "M", "device": "cpu", "dtype": "auto",
        "train": {"batch_size": 2, "epochs": 2, "max_length": 16, "grad_accum_steps": 2, "steps_per_epoch": 2},
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.1},
        "output": {"save_dir": "models", "save_name": "tuned", "save_metrics": True},
    }  # fmt: skip
    (here / "config.json").write_text(json.dumps(values))
    done = run("-m", "trainer", "--config", "config.json", cwd=here)
    assert done.returncode == 0, done.both[-3000:]
    out = here / "models" / "tuned"
    whole(out)
    steps = events(out)
    assert len(steps) == 4 and [event["epoch"] for event in steps] == [1, 1, 2, 2]
    assert all(event["texts"] == 8 for event in steps)


def test_python(here):
    from trainer.frontends.python_api import EmbedderFineTuner, FineTuningConfig

    def config(out):
        return FineTuningConfig(
            model_name_or_path="M", dataset_path="data/pairs.jsonl", output_dir=out, train_adapter=True,
            num_train_epochs=4, learning_rate=1e-2, wandb_run_name="first", per_device_train_batch_size=6,
        )  # fmt: skip

    final = EmbedderFineTuner(config("cosine"), loss_fn="cosine").train()
    assert str(final) == "cosine/final"
    whole(here / "cosine")
    steps = events(here / "cosine")
    # the loss is (1 - cosine)^2 of each pair, so it says what the logged similarity says, up to its spread
    assert all(step["loss"] >= (1 - step["positive_similarity"]) ** 2 - 1e-6 for step in steps)
    assert steps[-1]["loss"] < steps[0]["loss"] / 2 and steps[0]["negative_similarity"] is None

    seen = []

    def loss_fn(query_embeds, answer_embeds, batch):
        seen.append((query_embeds.shape, answer_embeds.shape, len(batch.row_ids)))
        return (query_embeds - answer_embeds).square().sum(dim=1).mean()

    EmbedderFineTuner(config("own"), loss_fn=loss_fn).train()
    assert set(seen) == {((6, 32), (6, 32), 6)}
    assert events(here / "own")[-1]["loss"] < events(here / "own")[0]["loss"]


def test_scored_triples_with_the_cosine_loss_on_two_ranks(here):
    command = shlex.split(
        "-m trainer --model_name_or_path M --finetune_type full --train_dataset scored.json --output_dir O "
        "--batch_size 3 --epochs 4 --lr 1e-2 loss.name=cosine"
    )
    done = forked.run_ranks(2, *command, cwd=here)
    assert done.returncode == 0, done.both[-4000:]
    out = here / "O"
    whole(out)
    assert "global batch 3 x 1 x 2 = 6 rows" in done.both
    assert done.both.count("train 12 rows") == 1, "one rank made the shards"
    steps = events(out)
    assert steps[-1]["loss"] < steps[0]["loss"] and not math.isnan(steps[-1]["loss"])
    assert json.loads((out / "run.json").read_text())["topology"]["processes"] == 2
