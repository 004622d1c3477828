"""A tokenizer without a padding token: the folder that is written has one, whatever there is to take."""

import json

import pytest
import torch

from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:20])]


@pytest.mark.parametrize("family, gone, pad", [
    ("llama", (), "[SEP]"),  # its EOS
    ("qwen3", ("eos_token",), "[UNK]"),
    ("bert", (), "[UNK]"),
    ("llama", ("eos_token", "unk_token", "sep_token", "cls_token"), "[PAD]"),  # the first of the vocabulary
])  # fmt: skip
def test_a_folder_without_a_padding_token_gets_one_that_changes_nothing(tmp_path, family, gone, pad):
    from sentence_transformers import SentenceTransformer

    base = tiny.model(tmp_path / "base", family, tiny.FAMILIES[family])
    path = base / "tokenizer_config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("pad_token", *gone)}
    path.write_text(json.dumps(values))
    embedder, tokenizer, spec, untrained = load_embedder(ModelConfig(path=str(base)))
    assert [note for note in spec.notes if "no padding token" in note and repr(pad) in note]
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    ours = encode(engine, tokenizer, TEXTS, "", 32)
    (tmp_path / "final").mkdir()
    save_embedder(tmp_path / "final", engine.weights() | untrained, embedder, tokenizer, spec)
    theirs = torch.tensor(SentenceTransformer(str(tmp_path / "final"), device="cpu").encode(TEXTS))
    assert torch.allclose(theirs, ours, atol=1e-5)
    *_, spec, _ = load_embedder(ModelConfig(path=str(tmp_path / "final")))
    assert not [note for note in spec.notes if "padding" in note], "now it has one"
