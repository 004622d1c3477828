"""Dense layers behind the pooling: read, trained, kept and written as sentence-transformers has them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.common.errors import BadInput, Failed
from tests import tiny
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.diagnosis.footprint import footprint
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.exporting.fresh_load import embeddings
from trainer.exporting.merging import merge
from trainer.exporting.proof import prove
from trainer.inference.encode import encode
from trainer.inference.probe import take_probe
from trainer.inference.text_encoder import TextEncoder
from trainer.model.build import count_parameters, load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import fp32_bytes, weights_sha256, zero_tensors
from trainer.model_folder.spec import read_spec
from trainer.preflight.inputs import Inputs
from trainer.preflight.model import check_model

pytestmark = pytest.mark.usefixtures("forked_loads")

TEXTS = ["w1 w2 w3", "w4", " ".join(tiny.WORDS[:40]), "w7 w8 w9 w10 w11"]
KINDS = {  # family -> pooling, layers as (outputs, bias, activation), normalised
    "t5": ("mean", [(24, False, "Identity")], True),  # as sentence-t5 and gtr-t5
    "bert": ("cls", [(32, True, "Tanh")], True),  # as LaBSE
    "gemma3": ("mean", [(64, False, "Identity"), (32, False, "Identity")], True),  # as EmbeddingGemma
    "qwen3": ("last", [(64, False, "Tanh"), (24, False, "Identity")], False),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders that sentence-transformers itself wrote."""
    where = tmp_path_factory.mktemp("dense")
    return {family: tiny.with_dense(where / family, family, *kind) for family, kind in KINDS.items()}


def engine_of(embedder) -> TorchEngine:
    return TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)


def theirs(folder) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def saved(folder: Path, loaded: tuple) -> Path:
    embedder, tokenizer, spec, untrained = loaded
    folder.mkdir()
    save_embedder(folder, dict(embedder.stored()) | untrained, embedder, tokenizer, spec)
    return folder


@pytest.mark.parametrize("family", KINDS)
def test_embeddings_are_sentence_transformers_own_before_and_after_saving(tmp_path, models, family):
    loaded = embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(models[family])))
    found = encode(engine_of(embedder), tokenizer, TEXTS, "", 32)
    assert found.shape == (4, KINDS[family][1][-1][0]) and embedder.size == found.shape[1]
    assert (found - theirs(models[family])).abs().max() < 1e-5
    out = saved(tmp_path / "saved", loaded)
    assert (found - theirs(out)).abs().max() < 1e-5
    modules = [module["path"] for module in json.loads((out / "modules.json").read_text())]
    layers = [f"{i}_Dense" for i in range(2, 2 + len(spec.dense))]
    assert modules == ["", "1_Pooling", *layers, *([f"{len(layers) + 2}_Normalize"] if spec.normalize else [])]
    assert weights_sha256(out) == weights_sha256(models[family]), "not a tensor more or less"


@pytest.mark.parametrize("family", KINDS)
def test_full_fine_tuning_trains_them_with_plain_autograds_gradient(models, family):
    from sentence_transformers import SentenceTransformer

    embedder, tokenizer, _, _ = load_embedder(ModelConfig(path=str(models[family])))
    engine, texts = engine_of(embedder), ["w1 w2 w3", "w4", "w5 w6"]
    weights = torch.randn(3, embedder.size)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with engine.accumulate():
        out = engine.embed(torch.tensor([token for text in ids for token in text]), [len(i) for i in ids], 0)
        engine.backward((out * weights).sum())
    found = engine.gradients()

    model = SentenceTransformer(str(models[family]), device="cpu").eval()
    (model(model.tokenize(texts))["sentence_embedding"] * weights).sum().backward()
    layers = {f"{i}_Dense.{n}": p.grad for i, module in enumerate(model) if i > 1 for n, p in module.named_parameters()}
    assert layers.keys() == {name for name in found if "_Dense." in name} and layers
    for name, gradient in layers.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
        assert gradient.abs().max() > 1e-4


def test_adapters_leave_them_as_they_are_and_merge_beside_them(tmp_path, models):
    base = models["t5"]
    loaded = embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(base), finetune="lora", lora={"r": 3}))
    assert any("dense layers behind the pooling (32 -> 24 (Identity)) stay as they are" in n for n in spec.notes)
    assert not any("_Dense" in name for name in embedder.trained())
    assert count_parameters(embedder)[0] == sum(p.numel() for p in embedder.trained().values())
    tiny.fill_adapter(embedder)
    embedder.adapter.base_sha256 = weights_sha256(base)
    expected = encode(engine_of(embedder), tokenizer, TEXTS, "", 32)
    trained = saved(tmp_path / "trained", loaded)
    assert (theirs(trained) - expected).abs().max() < 1e-5 < (theirs(base) - expected).abs().max()
    assert merge(str(base), trained, tmp_path / "merged") < 1e-4
    assert (theirs(tmp_path / "merged") - expected).abs().max() < 1e-4
    assert merge(str(base), trained, tmp_path / "rounded", precision="bfloat16") < 1e-2
    assert torch.nn.functional.cosine_similarity(theirs(tmp_path / "rounded").float(), expected).min() > 0.999
    other = copied(base, tmp_path / "other")
    change(other / "2_Dense" / "model.safetensors", lambda weight: weight + 1)
    with pytest.raises(BadInput, match="was trained on another base"):
        merge(str(other), trained, tmp_path / "wrong")


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def change(file: Path, by) -> None:
    save_file({name: by(t).contiguous() for name, t in load_file(file).items()}, file, metadata={"format": "pt"})


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


DAMAGES = {
    "zeroed": (lambda place: change(place / "model.safetensors", torch.zeros_like), "3_Dense.linear.weight: is all"),
    "removed": (lambda place: (place / "model.safetensors").unlink(), "3_Dense/model.safetensors: is missing"),
    "no config": (lambda place: (place / "config.json").unlink(), "3_Dense/config.json: is missing"),
    "turned": (lambda place: change(place / "model.safetensors", lambda w: w.flip(0)), "has cosine"),
    "another activation": (
        lambda place: edit(place / "config.json", activation_function="torch.nn.modules.activation.ReLU"),
        "has cosine",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_ones_are_found_before_an_export_ends(tmp_path, models, damage):
    loaded = embedder, tokenizer, spec, _ = load_embedder(ModelConfig(path=str(models["qwen3"])))
    out = saved(tmp_path / "out", loaded)
    probe = take_probe(engine_of(embedder), tokenizer, spec)
    probe.write(out)
    assert not any("_Dense" in name for name in zero_tensors(out))
    assert "at least 1.0000" in prove(out, probe, load=embeddings)[0]
    spoil, said = DAMAGES[damage]
    spoil(out / "3_Dense")
    with pytest.raises(Failed, match=said):
        prove(out, probe, load=embeddings)


def test_what_is_done_otherwise_elsewhere_is_refused_with_every_problem(tmp_path, models):
    folder = copied(models["qwen3"], tmp_path / "model")
    edit(folder / "2_Dense" / "config.json", activation_function="my_code.Swish", use_residual=True, out_features=48)
    edit(folder / "3_Dense" / "config.json", module_input_name="token_embeddings")
    other = copied(models["bert"], tmp_path / "other")
    (other / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(BadInput) as refused:
        read_spec(ModelConfig(path=str(folder)), folder)
    said = "\n".join(refused.value.problems)
    for text in (
        "2_Dense: its activation my_code.Swish is none of torch.nn's",
        "2_Dense: its input is added to its output",
        "3_Dense: takes 64 numbers, but is given 48",
        "3_Dense: its module_input_name is token_embeddings",
    ):
        assert text in said
    assert len(refused.value.problems) == 4
    with pytest.raises(
        BadInput, match=r"2_Dense: holds no model.safetensors; pickled weights \(\*.bin\) are not loaded"
    ):
        read_spec(ModelConfig(path=str(other)), other)


def test_weights_of_another_shape_are_refused_and_damaged_ones_too(tmp_path, models):
    folder = copied(models["bert"], tmp_path / "model")
    file = folder / "2_Dense" / "model.safetensors"
    change(file, lambda weight: weight[:8])
    for said in ("2_Dense: model.safetensors holds .*linear.bias': \\[8\\]", "2_Dense: model.safetensors is damaged"):
        with pytest.raises(BadInput, match=said):
            read_spec(ModelConfig(path=str(folder)), folder)
        file.write_bytes(b"x" * 20)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["Transformer", "Dense", "Pooling"], "modules Transformer, Dense, Pooling; supported are"),
        (["Transformer", "Pooling", "Pooling"], "modules Transformer, Pooling, Pooling; supported are"),
        (["Transformer", "LSTM", "Pooling"], "models.LSTM is none of"),
    ],
)
def test_modules_that_would_be_left_out_are_refused(tmp_path, models, kinds, said):
    folder = copied(models["bert"], tmp_path / "model")
    modules = [{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadInput, match=said):
        read_spec(ModelConfig(path=str(folder)), folder)
    (folder / "modules.json").write_text(json.dumps([{"type": "custom_st.Transformer", "path": ""}]))
    with pytest.raises(BadInput, match="custom_st.Transformer is none of sentence-transformers'"):
        read_spec(ModelConfig(path=str(folder)), folder)


def test_they_count_where_bytes_and_fingerprints_are_made(tmp_path, models):
    folder = models["t5"]
    encoder = TextEncoder(ModelConfig(path=str(folder)), "cpu")
    assert encoder.size == 24
    weights = [t.numel() for file in folder.rglob("*.safetensors") for t in load_file(file).values()]
    assert fp32_bytes(folder) == 4 * sum(weights)
    config = parse_config(
        {"output_dir": "o", "model": {"path": str(folder)}, "data": {"train": "d"}, "loss": {"matryoshka": [32, 8]}},
        "test",
    )
    planned = footprint(config, read_spec(config.model, folder), "cpu", 200, 20)
    assert 4 * sum(p.numel for p in planned.parameters) == fp32_bytes(folder) and planned.size == 24
    with pytest.raises(BadInput, match="matryoshka: 32, but the embeddings of .* have 24 dimensions"):
        check_model(Inputs(config))
    other = copied(folder, tmp_path / "other")
    edit(other / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.Tanh")
    assert TextEncoder(ModelConfig(path=str(other)), "cpu").fingerprint != encoder.fingerprint


def test_the_one_that_modules_json_names_is_taken_and_no_other(tmp_path, models):
    """Stella's folder is like this: its users choose among several sizes."""
    folder = copied(models["t5"], tmp_path / "model")
    (folder / "2_Dense").rename(folder / "2_Dense_24")
    shutil.copytree(folder / "2_Dense_24", folder / "2_Dense_other")
    change(folder / "2_Dense_other" / "model.safetensors", lambda weight: weight + 1)
    found = []
    for name in ("2_Dense_24", "2_Dense_other"):
        modules = json.loads((folder / "modules.json").read_text())
        modules[2]["path"] = name
        (folder / "modules.json").write_text(json.dumps(modules))
        embedder, tokenizer, _, _ = load_embedder(ModelConfig(path=str(folder)))
        vectors = encode(engine_of(embedder), tokenizer, TEXTS, "", 32)
        assert (vectors - theirs(folder)).abs().max() < 1e-5
        found.append((weights_sha256(folder), TextEncoder(ModelConfig(path=str(folder))).fingerprint))
    assert found[0][0] == weights_sha256(models["t5"]) != found[1][0]
    assert found[0][1] != found[1][1]
    del modules[2]
    (folder / "modules.json").write_text(json.dumps(modules))
    unnamed = weights_sha256(folder)
    for name in ("2_Dense_24", "2_Dense_other"):
        shutil.rmtree(folder / name)
    assert weights_sha256(folder) == unnamed not in found[0], "layers that nothing names are no part of the model"


def test_onnx_is_finished_by_them_outside(tmp_path, models):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from trainer.exporting.onnx import onnx_embeddings, write_onnx

    embedder, tokenizer, _, _ = load_embedder(ModelConfig(path=str(models["bert"])))
    out = copied(models["bert"], tmp_path / "model")
    write_onnx(out)
    expected = encode(engine_of(embedder), tokenizer, TEXTS[:2], "", 32).numpy()
    assert np.abs(onnx_embeddings(out, TEXTS[:2])["query"] - expected).max() < 1e-4
