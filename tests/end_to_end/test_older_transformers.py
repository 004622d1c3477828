"""A saved folder embeds alike in the previous major version of transformers, in an environment of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import tiny
from tests.launching import install
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.older_versions import OLDER, least_version

PACKAGES = [
    f"transformers=={OLDER}.*",
    "huggingface_hub<1.0",
    "tokenizers<=0.23.0,>=0.22",
    "sentence-transformers==5.1.*",
]
TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:28]), "w7 w8 w9 w10 w11"]
# Loads every folder as sentence-transformers and as plain transformers do, and writes what they make of the texts.
THERE = """
import importlib.metadata, importlib.util, json, sys
HIDDEN = ("datasets", "peft", "accelerate")  # of this environment, which ask for a newer huggingface_hub
find, read = importlib.util.find_spec, importlib.metadata.metadata
importlib.util.find_spec = lambda name, *more: None if name in HIDDEN else find(name, *more)
importlib.metadata.metadata = lambda name: read("hidden-" + name if name in HIDDEN else name)
import numpy as np
import transformers
from sentence_transformers import SentenceTransformer
assert transformers.__version__.startswith(sys.argv[1]), transformers.__version__
texts, made = json.loads(sys.argv[2]), {}
for folder in sys.argv[4:]:
    made[folder] = SentenceTransformer(folder, device="cpu").encode(texts, batch_size=4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    made[folder + " ids"] = batch["input_ids"].numpy() * batch["attention_mask"].numpy()
    if "t5" not in folder:
        transformers.AutoModel.from_pretrained(folder)(**batch)
np.savez(sys.argv[3], **made)
"""
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
BY_LAYER = {
    "full_attention": {"rope_type": "default", "rope_theta": 50.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
}
THETA = {"rope_type": "default", "rope_theta": 1e6}
FOLDERS = {  # name -> family, its rope, arguments of tiny.model, of the model section
    "bert": ("bert", None, {}, {}),
    "xlm-r": ("xlm-r", None, {}, {}),
    "mpnet": ("mpnet", None, {}, {}),
    "t5": ("t5", None, {}, {}),
    "qwen2": ("qwen2", THETA, {}, {}),
    "qwen3": ("qwen3", THETA, {}, {}),
    "llama": ("llama", THETA, {}, {}),
    "qwen3-left": ("qwen3", THETA, {"side": "left"}, {}),
    "llama-appended": ("llama", THETA, {"eos": False}, {"append_eos": True}),
    "qwen3-yarn": ("qwen3", YARN, {}, {}),
    "llama-llama3": ("llama", LLAMA3, {}, {}),
    "modernbert": ("modernbert", BY_LAYER, {"layers": 3}, {}),
    "gemma3": ("gemma3", BY_LAYER, {"layers": 3}, {}),
}


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> str:
    """A folder of the older packages; torch and the rest stay those of this environment."""
    folder = tmp_path_factory.mktemp("older")
    install(folder, *PACKAGES)
    return str(folder)


def saved(folder, family: str, rope: dict | None, model: dict, section: dict) -> tuple[np.ndarray, dict]:
    """Saves the folder as a run does; returns the trainer's own embeddings, and the config.json that it wrote."""
    from safetensors.torch import load_file, save_file

    pooling = tiny.FAMILIES.get(family, "mean")
    base = tiny.model(folder.with_name(f"{folder.name}-base"), family, pooling, **model)
    if rope:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope}))
        weights = load_file(base / "model.safetensors")  # attention that sees positions
        loud = {n: w * (12 if any(k in n for k in ("q_proj", "k_proj", "Wqkv")) else 1) for n, w in weights.items()}
        save_file(loud, base / "model.safetensors", metadata={"format": "pt"})
    embedder, tokenizer, spec, untrained = load_embedder(ModelConfig(path=str(base), **section))
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    folder.mkdir()
    save_embedder(folder, engine.weights() | untrained, embedder, tokenizer, spec)
    made = encode(engine, tokenizer, TEXTS, spec.rules.passage_prompt, spec.rules.passage_max_len).numpy()
    return made, json.loads((folder / "config.json").read_text())


def test_every_family_embeds_alike_in_the_previous_major_version(tmp_path, older):
    ours = {str(tmp_path / name): saved(tmp_path / name, *made) for name, made in FOLDERS.items()}
    assert all(least_version(settings, False) == OLDER for _, settings in ours.values()), "all are said to be alike"
    path = {"PYTHONPATH": older, "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "there.npz"
    done = subprocess.run(
        [sys.executable, "-c", THERE, OLDER, json.dumps(TEXTS), str(out), *ours],
        env=os.environ | path, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as there:
        for folder, (made, _) in ours.items():
            from transformers import AutoTokenizer

            batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
            assert np.array_equal(batch["input_ids"] * batch["attention_mask"], there[f"{folder} ids"]), folder
            cosines = (made * there[folder]).sum(axis=1)
            assert cosines.min() > 0.9999, (folder, cosines)
