"""Whole runs through the commands a user types: kill and resume, engines resuming each other, refusals."""

import json
import os
import shutil
import signal

import pytest
import torch

from tests import forked, tiny
from tests.end_to_end.runs import events, losses, weights, write_run
from tests.launching import ROOT, run, torchrun
from trainer.evaluate import main as evaluate
from trainer.export import main as export_main
from trainer.exporting import fresh_load as reload
from trainer.exporting import proof


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """86 train rows: six batches of 16, the last of 6; with an eval split."""
    return tiny.shards(tmp_path_factory.mktemp("data") / "shards", 110, eval_fraction=0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_bert, shards):
    """An uninterrupted run of 3 epochs under ddp on two ranks, in real processes: (run file, output folder)."""
    folder = tmp_path_factory.mktemp("whole")
    run_file = write_run(folder, tiny_bert, shards)
    done = run("-m", "launch", "run", "--config", str(run_file), "--engine", "ddp", "--processes", "2", real=True)
    assert done.returncode == 0, done.both[-4000:]
    return run_file, folder / "out"


def test_the_run_directory_holds_what_it_promises(whole):
    _, out = whole
    names = ["run.json", "logs.jsonl", "detailed_training_logs.json", "training_losses.json"]
    for name in [*names, "training_summary_report.json", "final/modules.json", "final/1_Pooling/config.json"]:
        assert (out / name).is_file(), name
    assert sorted(p.name for p in out.glob("checkpoint-epoch-*")) == [f"checkpoint-epoch-{n}" for n in (1, 2, 3)]
    assert list((out / "runs").glob("events.out.tfevents.*"))
    steps = json.loads((out / "detailed_training_logs.json").read_text())
    assert len(steps) == len(losses(out))
    assert [e["epoch"] for e in json.loads((out / "training_losses.json").read_text())] == [1, 2, 3]
    assert len(events(out, "evaluation")) == 4  # before training and after each epoch
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["topology"] == {"processes": 2, "engine": "ddp", "device": "cpu"}
    assert losses(out)[1] > losses(out)[len(steps) - 1]


@pytest.mark.parametrize("engine", ["cpu", "ddp"])
def test_no_secret_of_the_environment_is_in_a_file_a_log_or_an_error_of_a_run(tmp_path, tiny_bert, shards, engine):
    """The one run ends well, the other in an error of its loss, with the launcher's logs of each rank."""
    (tmp_path / "broken.py").write_text("def loss(queries, positives, batch):\n    raise RuntimeError('a bug')\n")
    secrets = {name: f"planted-{name}" for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "QDRANT_API_KEY")}
    run_file = write_run(tmp_path, tiny_bert, shards, max_steps=2)
    command = ["-m", "trainer", "--config", str(run_file), "--engine", engine]
    more = {"PET_LOG_DIR": str(tmp_path / "logs"), "PET_TEE": "3", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    if engine == "cpu":
        done = run(*command, **secrets, **more)
    else:
        done = torchrun(2, *command, "loss.name=broken:loss", **secrets, **more)
    assert (done.returncode == 0) == (engine == "cpu"), done.both
    assert engine == "cpu" or "a bug" in done.both
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert engine == "cpu" or any("logs" in path.parts for path in files)
    assert not [path for path in files if b"planted" in path.read_bytes()]
    assert "planted" not in done.both


def test_killed_in_the_second_epoch_the_same_command_resumes_to_the_same_bytes(whole, tmp_path, tiny_bert, shards):
    """And not before: a second run beside the living one is refused. Killed under its launcher: test_survival.py."""
    run_file, out = write_run(tmp_path, tiny_bert, shards), tmp_path / "out"
    command = ["-m", "trainer", "--config", str(run_file), "--engine", "ddp", "--resume"]
    killed = forked.ranks(2, command)
    killed[0].wait_until_it_says("step 9/")
    for rank in killed:
        rank.send_signal(signal.SIGSTOP)
    refused = forked.run_ranks(2, *command)
    assert refused.returncode == 2 and refused.both.count("error: ") == 1, refused.both[-4000:]
    assert f"error: output_dir: process {killed[0].pid} on " in refused.both
    for rank in killed:
        rank.kill()
        rank.wait()
    command = ["-m", "launch", "run", "--config", str(run_file), "--engine", "ddp", "--processes", "2", "--resume"]
    assert not (out / "final").exists()
    assert len(events(out)) > 6, "the kill came after steps of the second epoch"
    done = run(*command)
    assert done.returncode == 0, done.both[-4000:]
    assert "resuming from" in done.both
    assert losses(out) == losses(whole[1])
    assert list(out.glob("logs.tail-*.jsonl")), "the steps after the checkpoint are kept aside"
    expected = weights(whole[1] / "final")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out / "final").items())


# The second epoch of a ddp-2 run, and then its third, each on another engine or number of ranks.
RESUMERS = [
    (("ddp", 3), ("cpu", 1)),
    (("cpu", 1), ("ddp", 2)),
    (("zero2", 2), ("cpu", 1)),
    (("zero3", 2), ("ddp", 2)),
    (("zero1", 2), ("zero3", 2)),
]


@pytest.mark.parametrize("groups", RESUMERS, ids=["-".join(f"{e}{n}" for e, n in groups) for groups in RESUMERS])
def test_any_engine_resumes_any_others_run_with_the_same_losses(whole, tmp_path, monkeypatch, groups):
    """Each time cut back to its last but one epoch; output_dir is where the copy lies."""
    monkeypatch.setattr(
        proof, "load_elsewhere", reload.embeddings
    )  # in a fresh process: tests/unit/trainer/exporting/test_export_folder.py
    run_file, out = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for epoch, (engine, processes) in zip((1, 2), groups, strict=True):
        for name in ("final", *(f"checkpoint-epoch-{later}" for later in (2, 3) if later > epoch)):
            shutil.rmtree(copy / name)
        trainer = ["-m", "trainer", "--config", str(run_file), "--engine", engine, "--resume", f"output_dir={copy}"]
        done = run(*trainer) if processes == 1 else forked.run_ranks(processes, *trainer)
        assert done.returncode == 0, done.both[-4000:]
        assert f"checkpoint-epoch-{epoch} after step {6 * epoch}" in done.both
        assert losses(copy) == pytest.approx(losses(out), abs=1e-4)
    first = groups[0][0]
    if first.startswith("zero"):  # a checkpoint of its own can be exported, in one process and after the fact
        assert export_main([str(copy / "checkpoint-epoch-2"), "--output", str(tmp_path / first)]) == 0
        expected = weights(whole[1] / "checkpoint-epoch-2")
        for name, tensor in weights(tmp_path / first).items():
            assert torch.allclose(tensor, expected[name], atol=1e-4), name


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path):
    run_file, out = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "checkpoint-epoch-3")
    target = copy / "checkpoint-epoch-2" / "state" / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    done = run("-m", "trainer", "--config", str(run_file), "--resume", f"output_dir={copy}")
    assert done.returncode == 0, done.both[-4000:]
    assert "passed over: checkpoint-epoch-2: state/optimizer.safetensors is not what was written" in done.both
    assert "checkpoint-epoch-1 after step 6" in done.both
    assert losses(copy) == pytest.approx(losses(out), abs=1e-4)


def test_resuming_another_run_file_is_refused_and_a_finished_run_says_so(whole):
    run_file, _ = whole
    other = run("-m", "trainer", "--config", str(run_file), "--resume", "optim.lr=5e-4")
    assert other.returncode == 2
    assert "optim.lr: 0.001 in run.json, 0.0005 now" in other.both
    again = run("-m", "trainer", "--config", str(run_file), "--resume")
    assert again.returncode == 0
    assert "this run is finished" in again.both


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_autocast_over_fp32_weights_on_every_engine(whole, tmp_path, tiny_bert, shards, engine, precision):
    run_file = write_run(tmp_path, tiny_bert, shards, max_steps=8, epochs=2, precision=precision)
    done = forked.run_ranks(2, "-m", "trainer", "--config", str(run_file), "--engine", engine)
    assert done.returncode == 0, done.both[-4000:]
    got, fp32 = events(tmp_path / "out"), events(whole[1])
    used = [event for event in got if not event.get("skipped")]
    assert len(used) >= 6
    seen = ("loss", "positive_similarity", "negative_similarity")  # before any update; one alone may round to the same
    assert any(got[0][name] != fp32[0][name] for name in seen), "the lower precision must be in use"
    assert got[0]["loss"] == pytest.approx(fp32[0]["loss"], rel=0.02)
    assert got[0]["grad_norm"] == pytest.approx(fp32[0]["grad_norm"], rel=0.1) or got[0].get("skipped")
    final = weights(tmp_path / "out" / "final")
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert any((t.bfloat16().float() != t).any() for t in final.values()), "fp32 weights, not rounded ones"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tiny_bert, shards):
    """A run of 2 epochs over pairs with a learned temperature and graded pairs with a loss of their own: its folder."""
    folder = tmp_path_factory.mktemp("mixed")
    graded = [{"query": f"w{i} w{i + 1}", "item": f"w{2 * i} w{i}", "score": i % 5 / 4} for i in range(40)]
    for name, rows in (("pairs", tiny.rows(40)), ("graded", graded)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = [str(folder / "pairs.jsonl"), str(folder / "graded.jsonl")]
    done = run("-m", "data_prep", "shard", *inputs, "--output", str(folder / "shards"), "--eval-fraction", "0")
    assert done.returncode == 0, done.both
    run_file = write_run(folder, tiny_bert, folder / "shards", epochs=2, micro_batch_tokens="auto")
    values = json.loads(run_file.read_text())
    values["loss"] = {"temperature": 0.1, "temperature_lr": 0.05}
    values["data"]["allow"] = ["leakage"]  # the eval set holds some of the pairs: that it is used is what counts here
    values["sources"] = {
        "graded": {"loss": {"name": "cosent"}},
        "pairs": {"eval": str(shards), "query_prompt": "w9 w9 "},
    }
    run_file.write_text(json.dumps(values))
    done = run("-m", "trainer", "--config", str(run_file))
    assert done.returncode == 0, done.both[-4000:]
    return folder


def test_two_sources_train_each_on_its_own_loss_and_are_evaluated_on_their_own(mixed):
    steps = events(mixed / "out")
    for epoch in (1, 2):
        assert sorted(e["source"] for e in steps if e["epoch"] == epoch) == ["graded"] * 3 + ["pairs"] * 3
    for event in steps:
        assert ("batch_accuracy" in event) == (event["source"] == "pairs"), "a statistic of InfoNCE"
    fixed = [event["temperature"] for event in steps if event["source"] == "graded"]
    learned = [event["temperature"] for event in steps if event["source"] == "pairs"]
    assert set(fixed) == {0.05} and len(set(learned)) == len(learned), "learned where the loss says so"
    exported = json.loads((mixed / "out" / "final" / "config_sentence_transformers.json").read_text())
    assert exported["prompts"] == {"query": "", "document": "", "pairs-query": "w9 w9 "}
    found = events(mixed / "out", "evaluation")
    assert [event["step"] for event in found] == [0, 6, 12]
    assert all(event["source"] == "pairs" and 0 <= event["nDCG@10"] <= 1 for event in found)
    epochs = events(mixed / "out", "epoch")
    assert epochs[-1]["evaluation"]["pairs/nDCG@10"] == found[-1]["nDCG@10"]
    recorded = json.loads((mixed / "out" / "run.json").read_text())
    assert recorded["config"]["train"]["micro_batch_tokens"] == "auto"
    assert 2048 <= recorded["plan"]["micro_batch_tokens"] <= 2**22


def test_a_learned_temperature_goes_on_exactly(mixed, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(mixed / "out", copy)
    for name in ("final", "checkpoint-epoch-2"):
        shutil.rmtree(copy / name)
    done = run("-m", "trainer", "--config", str(mixed / "run.json"), "--resume", f"output_dir={copy}")
    assert done.returncode == 0, done.both[-4000:]
    assert "after step 6" in done.both
    state = "checkpoint-epoch-2/state/trainer.json"
    expected = json.loads((mixed / "out" / state).read_text())["temperatures"]
    assert json.loads((copy / state).read_text())["temperatures"] == expected
    assert expected["pairs"]["value"] != 0.1
    assert losses(copy) == losses(mixed / "out")


USERS_LOSS = """
def distance(queries, positives, batch):
    assert batch.negative_embeds.shape[0] == batch.negative_row.shape[0]
    return (queries - positives).square().sum(dim=1).mean()
"""


def test_a_users_loss_in_the_working_folder_under_the_launcher(tmp_path, tiny_bert, shards):
    (tmp_path / "my_losses.py").write_text(USERS_LOSS)
    run_file = write_run(tmp_path, tiny_bert, shards, max_steps=2)
    launcher = ["-m", "launch", "run", "--config", str(run_file), "--engine", "ddp", "--processes", "2"]
    done = run(*launcher, "loss.name=my_losses:distance", cwd=tmp_path)
    assert done.returncode == 0, done.both[-4000:]
    assert losses(tmp_path / "out")[2] < losses(tmp_path / "out")[1]


def test_a_users_loss_that_is_not_there_is_told_once(tmp_path, tiny_bert, shards):
    (tmp_path / "my_losses.py").write_text(USERS_LOSS)
    run_file = write_run(tmp_path, tiny_bert, shards)
    for name, words in (("my_losses:no", "has no attribute 'no'"), ("no:f", "there is no module 'no'")):
        command = [str(run_file), f"loss.name={name}"]
        for start in (["-m", "trainer", "--config"], ["-m", "launch", "run", "--engine", "cpu", "--config"]):
            done = run(*start, *command, cwd=tmp_path)
            assert done.returncode == 2, done.both
            assert done.both.count("error:") == 1 and words in done.both and "Traceback" not in done.both
    torn = forked.run_ranks(2, "-m", "trainer", "--config", str(run_file), "loss.name=my_losses:no", cwd=tmp_path)
    assert torn.returncode != 0
    assert torn.both.count("my_losses:no cannot be imported") == 1, "rank 0 speaks for all"


def test_another_world_than_the_planned_one_is_refused(tmp_path, tiny_bert, shards):
    run_file = write_run(tmp_path, tiny_bert, shards)
    done = forked.run_ranks(2, "-m", "trainer", "--config", str(run_file), "--processes", "4", "--engine", "ddp")
    assert "asked for 4 process(es), the world has 2" in done.both
    assert done.returncode != 0


def test_the_tokenizer_of_a_run_is_exported_as_the_folder_had_it(whole, tiny_bert):
    """Using a fast tokenizer writes the length it cuts at into it: that must not reach the export."""
    assert (whole[1] / "final" / "tokenizer.json").read_text() == (tiny_bert / "tokenizer.json").read_text()


ONE_RANK_FAILS = """
import os, sys
import trainer.train.setup as setup
from data_prep.common.errors import BadInput
from trainer.__main__ import main

load = setup.load_embedder

def only_rank_1_fails(*args, **options):
    if os.environ["RANK"] == "1":
        raise BadInput("model.path: not on this node")
    return load(*args, **options)

setup.load_embedder = only_rank_1_fails
sys.exit(main(sys.argv[1:]))
"""


def test_an_error_of_one_rank_is_told_by_that_rank(tmp_path, tiny_bert, shards):
    script = tmp_path / "one_rank_fails.py"
    script.write_text(ONE_RANK_FAILS)
    run_file = write_run(tmp_path, tiny_bert, shards)
    done = forked.run_ranks(2, str(script), "--config", str(run_file), timeout=120, PYTHONPATH=str(ROOT))
    assert done.returncode != 0
    assert "rank 1: error: model.path: not on this node" in done.both


def test_evaluate_compares_two_models_on_two_ranks(whole, shards, tiny_bert, tmp_path):
    result, alone = tmp_path / "result.json", tmp_path / "alone.json"
    asked = ["--model", str(whole[1] / "final"), "--baseline", str(tiny_bert), "--data", str(shards)]
    asked += ["--dims", "16", "--quantised", "binary"]
    done = forked.run_ranks(2, "-m", "trainer.evaluate", *asked, "--json", str(result))
    assert done.returncode == 0, done.both
    assert done.stdout.count("rescored: the first 100 documents") == 1, "rank 0 alone reports"
    values = json.loads(result.read_text())
    assert evaluate([*asked, "--json", str(alone)]) == 0
    assert values == json.loads(alone.read_text()) and len(values["variants"]) == 6
    row = values["comparison"]["nDCG@10"]
    assert row["interval_95"][0] <= row["difference"] <= row["interval_95"][1]
    step = json.loads((whole[1] / "final" / "verdict.json").read_text())["final"]["step"]
    measured = next(event for event in events(whole[1], "evaluation") if event["step"] == step)
    assert values["metrics"]["nDCG@10"] == pytest.approx(measured["nDCG@10"], abs=1e-6)
