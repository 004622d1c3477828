"""Share 0 embeds as the base and share 1 as the tuned model, for whole models and every kind of adapter."""

import copy
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from data_prep.common.errors import BadInput
from tests import tiny
from tests.unit.trainer.blending.conftest import tuned_copy
from trainer.blending.pair import open_pair
from trainer.blending.weights import between
from trainer.config.sections import ModelConfig
from trainer.inference.encode import encode
from trainer.inference.text_encoder import TextEncoder
from trainer.model import adapters
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder

CPU = torch.device("cpu")
TEXTS = ["w1 w2 w3 w4", "w9", "w5 w300 w7 w8 w9 w10 w11", "w17 w200 w399"]
SAME = 1 - 1e-5  # cosine


def config(path) -> ModelConfig:
    return ModelConfig(path=str(path))


def embedded(path) -> torch.Tensor:
    return torch.tensor(TextEncoder(config(path), "cpu").passages(TEXTS))


def at(model, pair, share: float) -> torch.Tensor:
    model.set(share)
    return encode(model.engine, copy.deepcopy(pair.tokenizer), TEXTS, "", 32)


def apart(one, other) -> float:
    return float((1 - cosine_similarity(one, other)).max())


@pytest.fixture
def opened(tiny_bert, between_folders):
    def open_kind(kind):
        if kind.startswith("q"):
            pytest.importorskip("bitsandbytes")
        pair = open_pair(config(tiny_bert), config(between_folders[kind]))
        return pair, between(pair, CPU)

    return open_kind


@pytest.mark.parametrize("kind", ["whole", "lora", "rslora", "dora", "qlora", "qdora"])
def test_the_ends_are_base_and_tuned_in_any_order(opened, tiny_bert, between_folders, kind):
    pair, model = opened(kind)
    base, tuned = embedded(tiny_bert), embedded(between_folders[kind])
    if kind.startswith("q"):  # the base as the adapter has it, of 4 bits
        quantised = ModelConfig(path=str(tiny_bert), finetune="qlora")
        embedder = load_embedder(quantised)[0]
        with torch.no_grad():
            ids = pair.tokenizer(TEXTS)["input_ids"]
            base = embedder.eval()(torch.tensor([i for one in ids for i in one]), [len(one) for one in ids], 0)
    assert apart(base, tuned) > 1e-3, "something lies between"
    for share in (0.0, 1.0, 0.5, 0.0, 0.3, 1.0):
        found = at(model, pair, share)
        if share in (0.0, 1.0):
            assert apart(found, (base, tuned)[int(share)]) < 1e-5, share
        else:
            assert min(apart(found, base), apart(found, tuned)) > 1e-5, share


def test_weights_between_whole_models_are_linear_the_unused_pooler_too(opened, tiny_bert, between_folders):
    _, model = opened("whole")
    model.set(0.3)
    base, tuned = (load_file(path / "model.safetensors") for path in (tiny_bert, between_folders["whole"]))
    found = model.weights()
    assert found.keys() == base.keys() and any("pooler" in name for name in found)
    for name, tensor in found.items():
        assert torch.allclose(tensor, 0.7 * base[name] + 0.3 * tuned[name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_an_adapters_scale_is_the_same_line_between_the_merged_weights(opened, tiny_bert, between_folders, kind):
    _, model = opened(kind)
    model.set(0.3)
    name = "encoder.layer.0.attention.self.query"
    stored = load_file(between_folders[kind] / "adapter_model.safetensors")
    settings = json.loads((between_folders[kind] / "adapter_config.json").read_text())
    factor = settings["lora_alpha"] / settings["r"] ** (0.5 if kind == "rslora" else 1)
    added = factor * stored[f"base_model.model.{name}.lora_B.weight"] @ stored[f"base_model.model.{name}.lora_A.weight"]
    base = load_file(tiny_bert / "model.safetensors")[f"{name}.weight"]
    weight = dict(adapters.merged(model.engine.embedder.adapter).named_parameters())[f"{name}.weight"]
    assert torch.allclose(weight, base + 0.3 * added, atol=1e-6)


def test_a_doras_lengths_go_from_those_of_the_bases_rows(opened, tiny_bert, between_folders):
    _, model = opened("dora")
    name = "encoder.layer.0.attention.self.query"
    rows = load_file(tiny_bert / "model.safetensors")[f"{name}.weight"].norm(dim=1)
    stored = load_file(between_folders["dora"] / "adapter_model.safetensors")
    trained = stored[f"base_model.model.{name}.lora_magnitude_vector.weight"]
    lengths = model.engine.embedder.backbone.get_submodule(name).lora_magnitude_vector["default"].weight
    assert (trained / rows - 1).min() >= 0 and (trained / rows).max() > 1.5, "they were trained"
    for share in (0.0, 0.25, 1.0):
        model.set(share)
        assert torch.allclose(lengths, rows + share * (trained - rows), rtol=1e-5), share


def test_planted_lengths_that_stay_as_trained_would_not_be_the_base(tiny_bert, between_folders, monkeypatch):
    def stay(backbone):
        lengths = (m.lora_magnitude_vector["default"].weight for m in backbone.modules() if hasattr(m, "lora_A"))
        return {length: length.data.clone() for length in lengths}

    monkeypatch.setattr(adapters, "_base_lengths", stay)
    pair = open_pair(config(tiny_bert), config(between_folders["dora"]))
    assert apart(at(between(pair, CPU), pair, 0.0), embedded(tiny_bert)) > 1e-4


def test_the_weights_of_neither_whole_model_are_held(opened):
    """Beside the model itself there are only its hollow ends: four bytes a tensor."""
    _, model = opened("whole")
    (ends,) = [cell.cell_contents for cell in model._move.__closure__ if isinstance(cell.cell_contents, list)]
    assert len(ends) == 2
    for end in ends:
        floats = [tensor for tensor in end.tensors.values() if tensor.is_floating_point()]
        assert floats and all(tensor.untyped_storage().nbytes() == 4 for tensor in floats)


@pytest.mark.parametrize("family", ["modernbert", "qwen3", "t5", "gemma3"])
def test_other_families(tmp_path, family):
    base = tiny.model(tmp_path / "base", family, tiny.FAMILIES[family])
    tuned = tuned_copy(base, tmp_path / "tuned")
    pair = open_pair(config(base), config(tuned))
    model = between(pair, CPU)
    for share, folder in ((0.0, base), (1.0, tuned)):
        assert apart(at(model, pair, share), embedded(folder)) < 1e-5
    assert apart(embedded(base), embedded(tuned)) > 1e-3


def test_dense_layers_are_blended_too(tmp_path):
    pytest.importorskip("sentence_transformers")
    base = tiny.with_dense(tmp_path / "base", "bert", "mean", [(16, True, "Tanh")], True)
    tuned = tuned_copy(base, tmp_path / "tuned")
    layer = next(path for path in tuned.glob("*_Dense/model.safetensors"))
    save_file({name: tensor + 0.2 for name, tensor in load_file(layer).items()}, layer, metadata={"format": "pt"})
    pair = open_pair(config(base), config(tuned))
    model = between(pair, CPU)
    for share, folder in ((0.0, base), (1.0, tuned)):
        assert apart(at(model, pair, share), embedded(folder)) < 1e-5


def altered(base, folder, **files):
    """A copy of a folder with other values in its JSON files. files: name -> changes."""
    shutil.copytree(base, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        values = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(values | changes))
    return folder


def refused(base, tuned, **asked) -> str:
    with pytest.raises(BadInput) as caught:
        pair = open_pair(*(ModelConfig(path=str(path), **asked) for path in (base, tuned)))
        between(pair, CPU)
    return "\n".join(caught.value.problems)


def test_folders_that_do_not_belong_together_are_refused_with_every_reason(tmp_path, tiny_bert):
    other = altered(tiny_bert, tmp_path / "prompts", config_sentence_transformers={"prompts": {"query": "find: "}})
    pooling = other / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True}))
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    said = refused(tiny_bert, other)
    assert "query_prompt: BASE has '', TUNED has 'find: '; --query-prompt" in said
    assert "pooling: BASE has 'mean', TUNED has 'cls'; --pooling" in said
    assert "vocabulary: 2 tokens have another id" in said and "'w0', 'w1'" in said
    said = refused(tiny_bert, other, pooling="mean", query_prompt="find: ")
    assert "prompt" not in said and "pooling" not in said and "vocabulary" in said


def test_models_of_other_shapes_or_settings_are_refused(tmp_path, tiny_bert):
    assert "num_hidden_layers: BASE has 2, TUNED has 3" in refused(tiny_bert, tiny.model(tmp_path / "deep", layers=3))
    assert 'model_type: BASE has "bert", TUNED has "mpnet"' in refused(tiny_bert, tiny.model(tmp_path / "m", "mpnet"))
    heads = altered(tiny_bert, tmp_path / "heads", config={"num_attention_heads": 4})
    assert "num_attention_heads: BASE has 2, TUNED has 4" in refused(tiny_bert, heads)
    free = altered(tiny_bert, tmp_path / "free", config={"hidden_dropout_prob": 0.5, "architectures": ["X"]})
    open_pair(config(tiny_bert), config(free))
    pieces = altered(tiny_bert, tmp_path / "quantised", config={"quantization_config": {"load_in_4bit": True}})
    assert "only an adapter of a quantised base" in refused(tiny_bert, pieces)
    assert "nothing lies between" in refused(tiny_bert, tiny_bert)


def test_adapters_of_another_base_and_adapters_as_base_are_refused(tmp_path, tiny_bert, between_folders):
    moved = tuned_copy(tiny_bert, tmp_path / "moved")
    assert "was trained on another base" in refused(moved, between_folders["lora"])
    assert "is an adapter; merge it" in refused(between_folders["lora"], between_folders["dora"])


def test_an_adapter_that_holds_more_than_a_scale_reaches_is_refused(tmp_path, tiny_bert):
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"bias": "all"}))
    assert re.search("holds more than a scale reaches, .*bias; merge it", refused(tiny_bert, adapter))
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa"}))
    assert "init_lora_weights" in refused(tiny_bert, adapter)


def test_an_adapter_of_peft_alone_is_blended_by_the_bases_own_reading(tmp_path, tiny_bert, capsys):
    pair = open_pair(config(tiny_bert), config(tiny.adapter(tmp_path / "adapter", tiny_bert, dora=True)))
    assert "records no hash of its base" in capsys.readouterr().err
    model = between(pair, CPU)
    base = embedded(tiny_bert)
    assert apart(at(model, pair, 0.0), base) < 1e-5 < 1e-3 < apart(at(model, pair, 1.0), base)


def test_copies_of_whole_modules_in_an_adapter_go_from_the_bases_own(tmp_path, tiny_bert):
    adapter = tiny.adapter(tmp_path / "adapter", tiny_bert)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"modules_to_save": ["LayerNorm"]}
    settings["target_modules"] = ["query"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    weights = load_file(adapter / "adapter_model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if ".query." in name}
    for name, tensor in load_file(tiny_bert / "model.safetensors").items():
        if "LayerNorm" in name:
            weights[f"base_model.model.{name}"] = tensor + 0.5
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    pair = open_pair(config(tiny_bert), config(adapter))
    model = between(pair, CPU)
    assert apart(at(model, pair, 0.0), embedded(tiny_bert)) < 1e-5
    written = tmp_path / "written"
    written.mkdir()
    model.set(0.5)
    save_embedder(written, model.weights(), model.engine.embedder, pair.tokenizer, pair.spec)
    stored = load_file(written / "adapter_model.safetensors")
    name = "embeddings.LayerNorm.weight"
    half = load_file(tiny_bert / "model.safetensors")[name] + 0.25
    assert torch.allclose(stored[f"base_model.model.{name}"], half)
    assert apart(embedded(written), at(model, pair, 0.5)) < 1e-5
