"""Pooling by closed form; a saved folder embeds the same in sentence-transformers; no pooling is ever assumed."""

import json
import shutil

import pytest
import torch

from data_prep.common.errors import BadInput
from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.optimizer import adamw
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.model.build import load_embedder
from trainer.model.embedder import pool
from trainer.model.save import save_embedder
from trainer.model_folder.spec import read_spec

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:40]), "w7 w8 w9 w10 w11"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_by_closed_form_with_padding_on_either_side(side):
    hidden = torch.randn(2, 4, 3)
    real = {"right": [[0, 1, 2, 3], [0, 1]], "left": [[0, 1, 2, 3], [2, 3]]}[side]
    mask = torch.zeros(2, 4, dtype=torch.int64)
    for row, positions in enumerate(real):
        mask[row, positions] = 1
    for row, positions in enumerate(real):
        assert torch.allclose(pool(hidden, mask, "mean")[row], hidden[row, positions].mean(dim=0), atol=1e-6)
        assert torch.equal(pool(hidden, mask, "cls")[row], hidden[row, positions[0]])
        assert torch.equal(pool(hidden, mask, "last")[row], hidden[row, positions[-1]])
    prompts = torch.tensor([2, 1])  # first tokens that are left out
    for row, (positions, weights) in enumerate(zip(([real[0][2], real[0][3]], [real[1][1]]), ([3, 4], [2]))):
        own, weights = hidden[row, positions], torch.tensor(weights)[:, None]
        expected = {"mean": own.mean(dim=0), "cls": own[0], "last": own[-1]}
        expected["weighted_mean"] = (own * weights).sum(dim=0) / weights.sum()
        for how, vector in expected.items():
            assert torch.allclose(pool(hidden, mask, how, prompts)[row], vector, atol=1e-6), how


def embed(config: ModelConfig) -> tuple:
    embedder, tokenizer, spec, untrained = load_embedder(config)
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    return (
        encode(engine, tokenizer, TEXTS, spec.rules.passage_prompt, spec.rules.passage_max_len),
        engine,
        tokenizer,
        spec,
        untrained,
    )


FAMILIES = [  # family, pooling, and whether the prompt is pooled too
    ("bert", "mean", False),
    ("bert", "cls", True),
    ("xlm-r", "cls", False),
    ("qwen2", "last", False),
    ("llama", "last", True),
    ("qwen2", "mean", True),
]


@pytest.mark.parametrize(("family", "pooling", "pool_prompt"), FAMILIES, ids=[f"{f}-{p}" for f, p, _ in FAMILIES])
def test_the_saved_folder_embeds_the_same_in_sentence_transformers(tmp_path, family, pooling, pool_prompt):
    from sentence_transformers import SentenceTransformer

    source = tiny.model(tmp_path / "source", family, pooling)
    stated = {"query": "w9 ", "passage": "w8 ", "clustering": "w7 "}
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": stated}))
    config = ModelConfig(path=str(source), passage_prompt="w3 w4 ", pool_prompt=pool_prompt)
    ours, engine, tokenizer, spec, untrained = embed(config)
    target = tmp_path / "saved"
    target.mkdir()
    save_embedder(target, engine.weights() | untrained, engine.embedder, tokenizer, spec)
    model = SentenceTransformer(str(target), device="cpu")
    assert model.prompts == {"query": "w9 ", "document": "w3 w4 ", "clustering": "w7 "}
    theirs = torch.tensor(model.encode_document(TEXTS))
    assert torch.allclose(ours, theirs, atol=1e-6)
    again = embed(ModelConfig(path=str(target)))[0]
    assert torch.allclose(again, ours, atol=1e-6)
    if pooling != "last":
        other = embed(config.model_copy(update={"pool_prompt": not pool_prompt}))[0]
        assert (other - ours).abs().max() > 1e-3, "the prompt's tokens make a difference"


def test_the_wheel_model_embeds_the_same_in_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    ours = embed(ModelConfig(path=minilm))[0]
    theirs = torch.tensor(SentenceTransformer(minilm, device="cpu").encode(TEXTS))
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.9999


def test_prompts_and_separate_lengths_reach_the_tokens(tiny_bert):
    config = ModelConfig(path=str(tiny_bert), query_prompt="w5 ", query_max_len=4, passage_max_len=9)
    _, tokenizer, spec, _ = load_embedder(config)
    from trainer.model.tokenizer import tokenize

    ids, cut = tokenize(["w6 w7 w8", "w6"], spec.rules.query_prompt, spec.rules.query_max_len, tokenizer)
    assert [tokenizer.decode(i) for i in ids] == ["[CLS] w5 w6 [SEP]", "[CLS] w5 w6 [SEP]"]
    assert cut == 1  # the second text fits exactly and is not counted
    assert len(tokenize([TEXTS[2]], "", spec.rules.passage_max_len, tokenizer)[0][0]) == 9


def test_a_folder_that_does_not_state_its_pooling_is_refused_unless_told(tmp_path):
    folder = tiny.model(tmp_path / "plain", pooling=None)
    with pytest.raises(BadInput, match="model.pooling"):
        read_spec(ModelConfig(path=str(folder)), folder)
    assert read_spec(ModelConfig(path=str(folder), pooling="cls"), folder).pooling == "cls"


def test_a_pooling_other_than_the_folders_is_said(tiny_bert):
    notes = read_spec(ModelConfig(path=str(tiny_bert), pooling="cls"), tiny_bert).notes
    assert any("trained with mean" in note for note in notes)


def test_dropout_is_off_by_default_and_the_models_own_on_request(tiny_bert):
    assert not any(m.training for m in load_embedder(ModelConfig(path=str(tiny_bert)))[0].backbone.modules())
    assert all(m.training for m in load_embedder(ModelConfig(path=str(tiny_bert), dropout="model"))[0].modules())


def test_the_saved_folder_keeps_the_config_and_the_tokenizer_of_its_source(tmp_path):
    source = tiny.model(tmp_path / "source", "qwen2", "last")
    embedder, tokenizer, spec, untrained = load_embedder(ModelConfig(path=str(source)))
    assert embedder.backbone.config.use_cache is False
    weights = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None).weights()
    save_embedder(tmp_path, weights | untrained, embedder, tokenizer, spec)
    saved, own = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, source))
    assert saved["use_cache"] == own["use_cache"] is True


def test_tensors_that_are_missing_are_refused_not_made_up(tiny_bert, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "holes"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="lacks 1 tensors of the model, among them encoder.layer.1.output.dense.weight"):
        load_embedder(ModelConfig(path=str(folder)))


def test_a_damaged_model_folder_is_the_users_error(tiny_bert, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    (broken / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_embedder(ModelConfig(path=str(broken)))


def test_matrices_decay_and_biases_and_norms_do_not(tiny_bert):
    embedder = load_embedder(ModelConfig(path=str(tiny_bert)))[0]
    optimizer = adamw(embedder, OptimConfig(weight_decay=0.1), torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(embedder.trained())
    for name, parameter in embedder.trained().items():
        assert decay[id(parameter)] == (0.1 if parameter.dim() > 1 else 0.0), name
