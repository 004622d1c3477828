"""Adapters: what is trained, counted, replayed, written and read again; frozen parts, recomputed blocks, averages."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data_prep.common.errors import BadInput
from tests import tiny
from tests.multiprocess.dense import relative_error
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.model.adapters import check_base
from trainer.model.build import count_parameters, load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import read_spec
from trainer.train.token_budget import activations

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:20]), "w7 w8 w9 w10 w11"]
LENGTHS = [9, 9, 6, 5, 5, 1]


def engine_of(embedder, **optim) -> TorchEngine:
    return TorchEngine(embedder, OptimConfig(**optim), World(), torch.device("cpu"), None)


def embeddings(loaded) -> torch.Tensor:
    embedder, tokenizer, spec, _ = loaded
    return encode(engine_of(embedder), tokenizer, TEXTS, spec.rules.passage_prompt, spec.rules.passage_max_len)


def lora(folder, **settings) -> ModelConfig:
    return ModelConfig(path=str(folder), finetune="lora", lora=settings)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_bert):
    return tiny.adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_bert)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_by_default_every_linear_layer_of_every_block_takes_an_adapter_and_only_adapters_train(tmp_path, family):
    folder = tiny.model(tmp_path / "model", family, tiny.FAMILIES[family])
    plain = load_embedder(ModelConfig(path=str(folder)))
    linear = [m for m in plain[0].backbone.modules() if isinstance(m, torch.nn.Linear)]
    loaded = load_embedder(lora(folder, r=3))
    trained = {n: p for n, p in loaded[0].backbone.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    expected = sum(3 * (layer.in_features + layer.out_features) for layer in linear)
    assert count_parameters(loaded[0]) == (expected, expected + sum(p.numel() for p in plain[0].parameters()))
    assert torch.allclose(embeddings(loaded), embeddings(plain), atol=1e-6), "B begins at zero"


def test_quantised_weights_are_counted_as_the_numbers_they_stand_for(tiny_bert):
    plain = count_parameters(load_embedder(ModelConfig(path=str(tiny_bert)))[0])[1]
    for bits in (4, 8):
        config = ModelConfig(path=str(tiny_bert), finetune="qlora", quantization_bits=bits, lora={"r": 2})
        trained, every = count_parameters(load_embedder(config)[0])
        assert every - trained == plain


def test_the_first_values_depend_on_the_seed_alone(tiny_bert):
    first, again, other = (load_embedder(lora(tiny_bert), seed=seed)[0].stored() for seed in (1, 1, 2))
    torch.rand(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_targets_that_are_not_there_are_named_with_those_that_are(tiny_bert):
    with pytest.raises(BadInput, match="no linear layer is called valeu; there are query, key, value, dense"):
        load_embedder(lora(tiny_bert, targets=["query", "valeu"]))


def test_a_family_that_is_not_known_takes_adapters_on_every_linear_layer(tiny_bert, monkeypatch):
    known = load_embedder(lora(tiny_bert))[0].stored()
    monkeypatch.setattr("trainer.model.adapters.family_of", lambda backbone: None)
    assert load_embedder(lora(tiny_bert))[0].stored().keys() == known.keys()


def gradient(embedder, seed: int = 3) -> dict[str, torch.Tensor]:
    """Returns the gradient of a fixed direction of six texts' embeddings, in training."""
    tokens = torch.randint(4, 400, (sum(LENGTHS),), generator=torch.manual_seed(1))
    embedder.zero_grad()
    out = embedder(tokens, LENGTHS, seed=seed)
    (out * torch.randn(out.shape, generator=torch.manual_seed(2))).sum().backward()
    return {n: p.grad.clone() for n, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "mpnet"])  # packed, and padded
def test_an_adapters_dropout_follows_the_seed_and_leaves_the_models_own_alone(tmp_path, family):
    folder = tiny.model(tmp_path / "model", family, dropout=0.3)
    embedder, *_ = load_embedder(lora(folder, dropout=0.2))
    engine_of(embedder)
    for parameter in embedder.stored().values():
        torch.nn.init.normal_(parameter, std=0.1)
    first, again, other = gradient(embedder), gradient(embedder), gradient(embedder, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert relative_error(other, first) > 1e-3
    embedder.eval()
    assert not any(m.training for m in embedder.modules())
    embedder.train()
    names = {
        name for name, module in embedder.backbone.named_modules() if module.training and not list(module.children())
    }
    assert names and all("lora_dropout" in name for name in names)


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "qwen3"])
@pytest.mark.parametrize(
    "settings", [{"dropout": "model"}, {"finetune": "lora", "lora": {"dropout": 0.2}}], ids=["full", "lora"]
)
def test_recomputed_blocks_give_the_same_bits_and_run_twice(tmp_path, family, settings):
    folder = tiny.model(tmp_path / "model", family, dropout=0.3)
    embedder, *_ = load_embedder(ModelConfig(path=str(folder), **settings))
    engine_of(embedder)
    expected = gradient(embedder)
    embedder.recompute()
    runs = []
    layers = (m for n, m in embedder.recomputed[0].named_modules() if n.endswith(FIRST_LAYER))
    next(layers).register_forward_hook(lambda *_: runs.append(1))
    found = gradient(embedder)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    assert len(runs) == 2


FIRST_LAYER = ("query", "Wqkv", "SelfAttention.q", "q_proj")


def test_recomputing_a_family_whose_blocks_cannot_be_is_refused(tmp_path):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny.model(tmp_path / "model", "mpnet"))))
    with pytest.raises(BadInput, match="cannot recompute the blocks of a mpnet"):
        embedder.recompute()


def test_the_automatic_budget_knows_that_blocks_are_recomputed(tmp_path):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny.model(tmp_path / "model", layers=6))))
    engine = engine_of(embedder)
    whole = activations(engine, 32).per_token
    embedder.recompute()
    less = activations(engine, 32).per_token
    assert whole / 6 < less < whole / 3
    assert all(block.gradient_checkpointing for block in embedder.recomputed)


def test_what_is_written_is_the_same_bytes_every_time_and_loads_in_sentence_transformers(tmp_path, tiny_bert):
    from sentence_transformers import SentenceTransformer

    start = tiny.adapter(tmp_path / "start", tiny_bert, dora=True)
    loaded = embedder, tokenizer, spec, _ = load_embedder(lora(tiny_bert, start=str(start)))
    embedder.adapter.base_sha256 = weights_sha256(tiny_bert)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_embedder(tmp_path / name, dict(embedder.stored()), embedder, tokenizer, spec)
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes(), path
    expected = embeddings(loaded)
    theirs = torch.tensor(SentenceTransformer(str(tmp_path / "one"), device="cpu").encode(TEXTS))
    assert (theirs - expected).abs().max() < 1e-5
    assert torch.allclose(embeddings(load_embedder(ModelConfig(path=str(tmp_path / "one")))), expected, atol=1e-6)
    plain = embeddings(load_embedder(ModelConfig(path=str(tiny_bert))))
    assert F.cosine_similarity(plain, expected).min() < 0.9, "the adapter does something"


def test_an_adapter_to_go_on_from_says_its_shape_and_nothing_else_may(adapter, tiny_bert):
    embedder, *_ = load_embedder(lora(tiny_bert, start=str(adapter), dropout=0.1, r=4))
    written = load_file(adapter / "adapter_model.safetensors")
    name = "encoder.layer.0.attention.self.query.lora_B"
    assert torch.equal(embedder.stored()[f"{name}.default.weight"], written[f"base_model.model.{name}.weight"])
    recorded = lora(tiny_bert, start=str(adapter)).model_dump(mode="json")
    assert recorded["lora"] == {"dropout": 0.0, "start": str(adapter)}
    assert lora(tiny_bert, start=str(adapter), r=4, alpha=6).model_dump(mode="json") == recorded, "so it can be resumed"
    read_spec(ModelConfig(**recorded), tiny_bert)  # a run's record does not contradict the adapter
    with pytest.raises(BadInput, match="model.lora.r: 8, but the adapter .* has 4; leave it out"):
        read_spec(lora(tiny_bert, start=str(adapter), r=8), tiny_bert)
    with pytest.raises(BadInput, match="is no adapter folder"):
        read_spec(lora(tiny_bert, start=str(tiny_bert)), tiny_bert)


def test_an_adapter_of_other_layers_is_refused(adapter, tmp_path):
    deeper = tiny.model(tmp_path / "deeper", layers=3)
    with pytest.raises(BadInput, match="is an adapter of other layers"):
        load_embedder(lora(deeper, start=str(adapter)))


def test_an_adapter_of_another_base_is_refused(tmp_path, adapter, tiny_bert):
    embedder, tokenizer, spec, _ = load_embedder(lora(tiny_bert, start=str(adapter)))
    embedder.adapter.base_sha256 = weights_sha256(tiny_bert)
    save_embedder(tmp_path, dict(embedder.stored()), embedder, tokenizer, spec)
    check_base(tmp_path, str(tiny_bert), weights_sha256(tiny_bert))
    check_base(adapter, str(tiny_bert), "other")  # peft alone records none
    with pytest.raises(BadInput, match="was trained on another base"):
        check_base(tmp_path, str(tiny_bert), "other")


def test_an_adapter_whose_base_is_gone_says_so(tmp_path, adapter, tiny_bert):
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    embedder, tokenizer, spec, _ = load_embedder(lora(base, start=str(adapter)))
    (tmp_path / "final").mkdir()
    save_embedder(tmp_path / "final", dict(embedder.stored()), embedder, tokenizer, spec)
    shutil.rmtree(base)
    with pytest.raises(BadInput, match="is an adapter of .*base, which is no model folder here"):
        read_spec(ModelConfig(path=str(tmp_path / "final")), tmp_path / "final")


def test_frozen_parts_get_no_gradient(tmp_path):
    folder = tiny.model(tmp_path / "model", layers=3)
    config = ModelConfig(path=str(folder), freeze={"embeddings": True, "layers": 2})
    embedder, *_ = load_embedder(config)
    assert {name.split("encoder.")[1].split(".")[1] for name in gradient(embedder)} == {"2"}
    with pytest.raises(BadInput, match="model.freeze.layers: 3, but .* has 3"):
        read_spec(ModelConfig(path=str(folder), freeze={"layers": 3}), folder)


def trained_engine(folder, steps: int, **optim) -> TorchEngine:
    engine = engine_of(load_embedder(ModelConfig(path=str(folder)))[0], lr=1e-2, **optim)
    take_steps(engine, 0, steps)
    return engine


def take_steps(engine: TorchEngine, first: int, last: int) -> None:
    for step in range(first, last):
        tokens = torch.randint(4, 400, (20,), generator=torch.manual_seed(step))
        with engine.accumulate():
            engine.backward(engine.embed(tokens, [10, 10], seed=0)[:, 0].sum())
        engine.apply(1e-2)


def test_eight_bit_moments_come_back_as_they_were(tiny_bert):
    whole = trained_engine(tiny_bert, 5, name="adamw_8bit")
    half = trained_engine(tiny_bert, 3, name="adamw_8bit")
    moments = {name: t.clone() for name, t in half.moments().items()}
    assert moments["state1.embeddings.word_embeddings.weight"].dtype == torch.uint8
    assert "absmax2.embeddings.word_embeddings.weight" in moments
    resumed = engine_of(load_embedder(ModelConfig(path=str(tiny_bert)))[0], lr=1e-2, name="adamw_8bit")
    resumed.embedder.backbone.load_state_dict(half.embedder.backbone.state_dict())
    resumed.load_moments(moments, 3)
    take_steps(resumed, 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights().values(), resumed.weights().values(), strict=True))
    exact = trained_engine(tiny_bert, 5).weights()
    name = "embeddings.word_embeddings.weight"
    start = load_file(tiny_bert / "model.safetensors")[name]
    moved, moved_exactly = whole.weights()[name] - start, exact[name] - start
    assert F.cosine_similarity(moved.flatten(), moved_exactly.flatten(), dim=0) > 0.98


def test_the_average_is_that_of_the_weights_after_every_update(tiny_bert):
    name = "encoder.layer.0.output.dense.weight"
    expected = load_file(tiny_bert / "model.safetensors")[name]
    engine = engine_of(load_embedder(ModelConfig(path=str(tiny_bert)))[0], lr=1e-2, ema=0.7)
    for step in range(4):
        take_steps(engine, step, step + 1)
        expected = 0.7 * expected + 0.3 * engine.weights()[name]
    weights = engine.weights()[name].clone()
    with engine.average.in_place():
        assert torch.allclose(engine.weights()[name], expected, atol=1e-6)
    assert torch.equal(engine.weights()[name], weights)
    assert torch.allclose(engine.moments()[f"ema.{name}"], expected, atol=1e-6)
    assert not torch.allclose(weights, expected, atol=1e-4)


def test_an_8_bit_layer_multiplies_by_its_dequantised_weights_whatever_the_device(tiny_bert):
    """bitsandbytes would round inputs by their neighbours on CUDA: no product may be its own."""
    config = ModelConfig(path=str(tiny_bert), finetune="qlora", quantization_bits=8, lora={"r": 2})
    embedder = load_embedder(config)[0]
    assert embedder.quantised
    for layer in embedder.quantised.values():
        x = torch.randn(3, layer.in_features, generator=torch.manual_seed(0)).requires_grad_()
        out = layer(x)
        weights = layer.state.CB.float() * layer.state.SCB[:, None] / 127
        assert torch.allclose(out, torch.nn.functional.linear(x, weights, layer.bias), atol=1e-6)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.allclose(grad, weights.sum(dim=0).expand_as(x), atol=1e-5)


def test_8_bit_layers_never_reach_bitsandbytes_choice_by_device(tiny_bert, monkeypatch):
    import bitsandbytes

    config = ModelConfig(path=str(tiny_bert), finetune="qlora", quantization_bits=8, lora={"r": 2})
    embedder = load_embedder(config)[0]
    monkeypatch.setattr(bitsandbytes, "matmul", None)
    gradient(embedder)
