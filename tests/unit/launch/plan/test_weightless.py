"""`launch plan` without the weights: from a folder that lacks them, and from a hub that counts what it sends."""

import json
import shutil

import pytest

from launch.__main__ import main
from tests import tiny
from tests.hub_files import REPOSITORY, TOKEN, serving
from tests.launching import run

FLAGS = ["--gpus-per-node", "2", "--gpu", "H100"]


def planned(capsys, run_file, model, *flags: str) -> dict:
    capsys.readouterr()  # what making the model printed
    assert main(["plan", "--config", str(run_file), "--json", *FLAGS, f"model.path={model}", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run_file(tmp_path, tiny_shards):
    path = tmp_path / "run.json"
    values = {"output_dir": "out", "model": {"path": "said below"}, "data": {"train": str(tiny_shards)}}
    path.write_text(json.dumps(values | {"train": {"batch_size": 16, "precision": "bf16"}}))
    return path


def test_a_folder_may_lack_its_weights_and_those_of_dense_layers(capsys, tmp_path, run_file):
    whole = tiny.with_dense(tmp_path / "whole", "bert", "mean", [(24, True, "Tanh")], normalize=True)
    without = shutil.copytree(whole, tmp_path / "without")
    for path in without.rglob("*.safetensors"):
        path.unlink()
    one, other = planned(capsys, run_file, whole), planned(capsys, run_file, without)
    assert one["candidates"] == other["candidates"] and one["model"]["parameters"] == other["model"]["parameters"]
    assert other["model"]["weights"] == f"none in {without}; the plan needs none, the run will"
    numbers = one["model"]["parameters"] - 32 * 24 - 24  # the dense layer's lie in a file of their own
    assert one["model"]["weights"].startswith(f"{4 * numbers / 1e9:.2f} GB in F32, 1 file(s), not read")
    assert main(["run", "--config", str(run_file), "--dry-run", f"model.path={without}", "train.device=cpu"]) == 2
    assert "holds no *.safetensors weights" in capsys.readouterr().err


def test_a_folder_with_damaged_weights_is_planned_all_the_same(capsys, tmp_path, run_file, tiny_bert):
    damaged = shutil.copytree(tiny_bert, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights at all")
    assert planned(capsys, run_file, damaged)["candidates"] == planned(capsys, run_file, tiny_bert)["candidates"]


def test_an_adapter_is_refused_before_its_base_is_looked_for(capsys, tmp_path, run_file, tiny_bert):
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": "org/large"}))
    assert main(["plan", "--config", str(run_file), *FLAGS, f"model.path={adapter}"]) == 2
    assert "is an adapter; a run starts from its base" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path, tiny_bert):
    """A hub whose model has 20 MB of weights in two files, and other files that no plan needs."""
    import torch
    from safetensors.torch import save_file

    folder = shutil.copytree(tiny_bert, tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        tensors = {f"weight.{number}": torch.zeros(5_000_000, dtype=torch.bfloat16)}
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors")
    for name in ("pytorch_model.bin", "onnx/model.onnx", "vocab.json", "vocab.txt", "results/scores.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b" " * 3_000_000)
    with serving(folder) as hub:
        yield hub


def test_a_hub_sends_config_tokenizer_and_the_heads_of_the_weights(capsys, tmp_path, run_file, hub, tiny_bert):
    where = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    argv = ["-m", "launch", "plan", "--config", str(run_file), "--json", *FLAGS, f"model.path={REPOSITORY}"]
    done = run(*argv, real=True, **where, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.both
    facts = json.loads(done.stdout)
    assert facts["candidates"] == planned(capsys, run_file, tiny_bert)["candidates"]
    assert facts["model"]["weights"] == "0.02 GB in BF16, 2 file(s), not downloaded"
    whole = {name for name, times in hub.served.items() if times and not name.endswith(".safetensors")}
    assert whole <= {
        "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json",
        "1_Pooling/config.json", "2_Normalize/config.json", "special_tokens_map.json",
    }  # fmt: skip
    assert hub.bytes < 1_000_000  # 200 kB of each weights file, and the tokenizer
