"""A model that is loaded a tensor at a time is the one that is loaded at once; ranks that do not read hold nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.model import loading
from trainer.model.build import load_embedder
from trainer.model.loading import Sources

CPU = torch.device("cpu")
FAMILIES = {**tiny.FAMILIES, "gemma3": "mean"}
PARTS = {
    "full": {},
    "lora": {"finetune": "lora", "lora": {"r": 3}},
    "dora": {"finetune": "lora", "lora": {"r": 3, "dora": True}},
}


def published(folder: Path, dtype: torch.dtype) -> Path:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_same(filled, expected) -> None:
    """Embedders and the weights of an unused pooler, tensor by tensor."""
    (one, *_, untrained), (other, *_, their_untrained) = filled, expected
    for ours, theirs in (
        (one.parameters_by_name(), other.parameters_by_name()),
        (dict(one.named_buffers()), dict(other.named_buffers())),
        (untrained, their_untrained),
    ):
        assert ours.keys() == theirs.keys()
        wrong = [n for n, t in theirs.items() if ours[n].dtype != t.dtype or not torch.equal(ours[n], t)]
        assert not wrong, wrong


CONVERTED = ("nomic", "gte")  # transformers makes their weights from others: they are loaded at once


def both(config: ModelConfig, at_once: bool = False, **more):
    """The model of an engine that filled it, and the one that was loaded at once. at_once: that one is, too."""
    sources = Sources(reads=True)
    loaded = load_embedder(config, seed=1, sources=sources, **more)
    assert any(parameter in sources for parameter in loaded[0].parameters()) != at_once
    TorchEngine(loaded[0], OptimConfig(), World(), CPU, None)
    return loaded, load_embedder(config, seed=1, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_filled_by_an_engine_is_the_one_loaded_at_once(tmp_path, family, dtype):
    folder = published(tiny.model(tmp_path / "model", family, FAMILIES[family]), dtype)
    for part in PARTS.values():
        for base in ("fp32", "bf16")[: 1 + bool(part)]:
            assert_same(*both(ModelConfig(path=str(folder), **part), family in CONVERTED, base=base))


def test_a_rank_that_does_not_read_holds_nothing_until_it_is_filled(tiny_bert, monkeypatch):
    opened = []
    monkeypatch.setattr("trainer.model.loading.Sources.read", lambda *_: opened.append(1))
    for part in PARTS.values():
        sources = Sources(reads=False)
        embedder, *_, untrained = load_embedder(ModelConfig(path=str(tiny_bert), **part), sources=sources)
        hollow = [p for p in embedder.backbone.parameters() if p in sources]
        assert len(hollow) > 30 and sum(p.untyped_storage().nbytes() for p in hollow) == 4 * len(hollow)
        assert not untrained and not opened
        shapes = [p.shape for p in embedder.parameters()]
        room = torch.empty(4 * max(p.numel() for p in embedder.parameters()), dtype=torch.uint8)
        for number, parameter in enumerate(embedder.parameters()):
            sources.fill(parameter, CPU, room if number % 2 else None)
        assert [p.shape for p in embedder.parameters()] == shapes
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in embedder.parameters())


def test_shards_are_read_and_foreign_files_are_not(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    save_file(zeros, folder / "consolidated.safetensors", metadata={"format": "pt"})
    filled, expected = both(ModelConfig(path=str(folder)))
    assert_same(filled, expected)
    assert_same(filled, load_embedder(ModelConfig(path=str(tiny_bert))))


def test_a_resumed_checkpoint_is_read_the_same_way(tmp_path, tiny_bert):
    checkpoint = shutil.copytree(tiny_bert, tmp_path / "checkpoint")
    weights = {name: tensor + 1 for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    filled, expected = both(ModelConfig(path=str(tiny_bert)), checkpoint=checkpoint)
    assert_same(filled, expected)
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(filled[0].parameters_by_name()[words], weights[words])


def test_an_adapter_that_holds_weights_of_its_base_or_copies_them(tmp_path, tiny_bert):
    start = tiny.adapter(tmp_path / "adapter", tiny_bert)
    weights = load_file(start / "adapter_model.safetensors")
    words = torch.randn(load_file(tiny_bert / "model.safetensors")["embeddings.word_embeddings.weight"].shape)
    place = "base_model.model.embeddings"
    weights |= {f"{place}.word_embeddings.weight": words, f"{place}.LayerNorm.weight": torch.ones(32)}
    weights |= {f"{place}.LayerNorm.bias": torch.ones(32)}
    save_file(weights, start / "adapter_model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(path=str(tiny_bert), finetune="lora", lora={"start": str(start)})
    filled, expected = both(config)
    assert_same(filled, expected)
    assert torch.equal(filled[0].backbone.embeddings.word_embeddings.weight, words)
    for key, value in (("modules_to_save", ["embeddings.LayerNorm"]), ("init_lora_weights", "pissa")):
        settings = json.loads((start / "adapter_config.json").read_text()) | {key: value}
        (start / "adapter_config.json").write_text(json.dumps(settings))
        assert_same(*both(config, at_once=value == "pissa"))


def test_a_folder_without_a_pooler_is_read_the_same_way(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    filled, expected = both(ModelConfig(path=str(folder)))
    assert_same((filled[0], {}), (expected[0], {}))  # its numbers are random


def test_weights_that_transformers_computes_are_loaded_at_once(tiny_bert, monkeypatch):
    monkeypatch.setattr("trainer.model.loading._computes", lambda backbone: True)
    config = ModelConfig(path=str(tiny_bert))
    sources = Sources(reads=True)
    assert_same(load_embedder(config, sources=sources), load_embedder(config))
    sources = Sources(reads=False)
    embedder, *_ = load_embedder(config, sources=sources)
    assert all(parameter in sources for parameter in embedder.backbone.parameters())


def test_a_mixture_of_experts_computes_its_weights(tmp_path):
    import transformers as tf

    size = {"vocab_size": 404, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "moe_intermediate_size": 16}
    folder = tiny.model(tmp_path / "model", "qwen3", "last")
    tf.Qwen3MoeModel(tf.Qwen3MoeConfig(**size, **heads, num_experts_per_tok=1)).save_pretrained(folder)
    stored = loading.Stored(loading.weights_of(folder))
    assert any("experts.0." in name for name in stored.state), "one tensor for each expert, as published"
    assert_same(*both(ModelConfig(path=str(folder)), at_once=True))


def test_own_code_loads_itself(tmp_path):
    config = ModelConfig(path=str(tiny.own_code(tmp_path / "own")), trust_remote_code=True)
    for reads in (True, False):
        sources = Sources(reads=reads)
        loaded = load_embedder(config, sources=sources)
        if reads:
            assert_same(loaded, load_embedder(config))
        else:
            assert all(parameter in sources for parameter in loaded[0].backbone.parameters())


def test_a_missing_tensor_is_named_as_before(tmp_path, tiny_bert):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = []
    for sources in (None, Sources(reads=True), Sources(reads=False)):
        with pytest.raises(BadInput) as caught:
            load_embedder(ModelConfig(path=str(folder)), sources=sources)
        said.append(str(caught.value))
    assert "lacks 1 tensors of the model, among them encoder.layer.1.output.dense.weight" in said[0]
    assert said[0] == said[1] == said[2]


def test_an_adapter_names_its_base_as_before(tiny_bert):
    config = ModelConfig(path=str(tiny_bert), **PARTS["lora"])
    names = [load_embedder(config, sources=sources)[0].adapter.model for sources in (None, Sources(reads=True))]
    assert names[0].peft_config["default"].base_model_name_or_path == str(tiny_bert)
    assert names[1].peft_config["default"].base_model_name_or_path == str(tiny_bert)


def test_a_pooler_that_the_folder_lacks_is_not_made_up_for_the_next_one(tmp_path, tiny_bert):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_bert, folder)
    kept = {name: t for name, t in load_file(folder / loading.WHOLE).items() if "pooler." not in name}
    save_file(kept, folder / loading.WHOLE, metadata={"format": "pt"})
    for sources in (None, Sources(reads=True)):
        assert load_embedder(ModelConfig(path=str(folder)), sources=sources)[3] == {}
    assert len(load_embedder(ModelConfig(path=str(tiny_bert)))[3]) == 2, "one that is there is exported again"
