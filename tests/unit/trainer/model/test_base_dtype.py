"""Frozen weights in bf16: half the bytes, computed as with the rounded weights in fp32, said, recorded and exported."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from data_prep.common.errors import BadInput, Failed
from tests import tiny
from tests.multiprocess.dense import relative_error
from trainer.__main__ import main as train
from trainer.config.loading import load_config
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.exporting.export_folder import export
from trainer.exporting.merging import merge
from trainer.inference.encode import encode
from trainer.inference.probe import read_probe, take_probe
from trainer.model import adapters, base_dtype
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import read_spec

pytestmark = pytest.mark.usefixtures("forked_loads")

FAMILIES = {family: pooling for family, pooling in tiny.FAMILIES.items() if family != "deberta"}  # refused
LENGTHS = [9, 9, 6, 5, 5, 1]
LORA = {"finetune": "lora", "lora": {"r": 3}}
PARTS = {
    "lora": LORA,
    "dora": {"finetune": "lora", "lora": {"r": 3, "dora": True}},
    "frozen layers": {"freeze": {"embeddings": True, "layers": 1}},
}


def rounded_by_hand(embedder) -> None:
    """Every frozen matrix of the backbone in bf16 and back, but what transformers keeps in fp32 (T5's wo)."""
    for name, parameter in embedder.backbone.named_parameters():
        if parameter.dim() == 2 and not parameter.requires_grad and ".wo." not in name:
            parameter.data = parameter.data.to(torch.bfloat16).float()


def gradient(embedder, autocast=None) -> dict:
    embedder.zero_grad()
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (sum(LENGTHS),))
    out = embedder(ids, LENGTHS, 0, autocast)
    (out * torch.randn(out.shape)).sum().backward()
    return {name: p.grad for name, p in embedder.trained().items() if p.grad is not None} | {"": out.detach()}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_computes_as_with_the_rounded_weights_in_fp32(tmp_path, family, part, autocast):
    folder = tiny.model(tmp_path / "model", family, FAMILIES[family])
    config = ModelConfig(path=str(folder), **PARTS[part])
    stored, plain, by_hand = (load_embedder(config, base=base)[0] for base in ("bf16", "fp32", "fp32"))
    rounded_by_hand(by_hand)
    if part == "dora":
        adapters.measure_rows(by_hand.backbone, by_hand.sources)
    for embedder in (stored, plain, by_hand):
        tiny.fill_adapter(embedder)
    expected = gradient(by_hand, autocast)
    assert relative_error(gradient(stored, autocast), expected) < 1e-6
    if autocast is None:
        assert relative_error(gradient(plain), expected) > 1e-4, "rounding changes something"


@pytest.mark.parametrize("part", PARTS)
def test_frozen_matrices_take_half_the_bytes_and_all_else_is_fp32(tiny_bert, part):
    config = ModelConfig(path=str(tiny_bert), **PARTS[part])
    plain, stored = (load_embedder(config, base=base)[0] for base in ("fp32", "bf16"))
    sizes = [{n: p.numel() * p.element_size() for n, p in e.parameters_by_name().items()} for e in (plain, stored)]
    halved = {name for name, size in sizes[1].items() if 2 * size == sizes[0][name]}
    assert halved == {n for n, p in plain.parameters_by_name().items() if p.dim() == 2 and not p.requires_grad}
    assert all(sizes[1][name] == sizes[0][name] for name in sizes[0].keys() - halved)
    assert {p.dtype for p in stored.trained().values()} == {torch.float32}
    assert stored.rounded.numbers == sum(sizes[1][name] for name in halved) // 2


def test_only_the_stored_weight_is_kept_for_the_backward_pass(tiny_bert):
    """A copy in the dtype of the products would bring back what the base saves, layer by layer."""
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert), **LORA), base="bf16")
    base = {p.data_ptr() for p in embedder.parameters() if not p.requires_grad}
    shapes = {p.shape for p in embedder.parameters() if p.dtype == torch.bfloat16}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        embedder(torch.arange(5, 40), [35], 0)
    matrices = [t for t in kept if t.dim() == 2 and (t.shape in shapes or t.T.shape in shapes)]
    assert any(t.data_ptr() in base for t in matrices)
    assert all(t.data_ptr() in base or t.shape[0] == 35 for t in matrices), "35: tokens, of activations"


def test_what_transformers_keeps_in_fp32_stays_so(tmp_path):
    folder = tiny.model(tmp_path / "model", "t5", "mean")
    embedder, *_ = load_embedder(ModelConfig(path=str(folder), **LORA), base="bf16")
    dtypes = {n: p.dtype for n, p in embedder.parameters_by_name().items() if "lora" not in n and p.dim() == 2}
    assert {n for n, dtype in dtypes.items() if dtype == torch.float32} == {n for n in dtypes if ".wo." in n}


def test_a_weight_that_another_module_uses_too_stays_fp32(tiny_bert):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert), **LORA))
    words = embedder.backbone.embeddings.word_embeddings.weight
    assert words in base_dtype.matrices(embedder.backbone)
    embedder.backbone.head = torch.nn.Bilinear(2, 2, 2)
    embedder.backbone.head.weight = words
    assert words not in base_dtype.matrices(embedder.backbone)


@pytest.mark.parametrize("part", [{}, LORA])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_autocast_rounds_the_weights_of_products_anyway(tmp_path, family, part):
    folder = tiny.model(tmp_path / "model", family, tiny.FAMILIES[family])
    embedder, *_ = load_embedder(ModelConfig(path=str(folder), **part))
    chosen = base_dtype.product_weights(embedder.backbone)
    before = gradient(embedder, torch.bfloat16)
    for parameter in chosen:
        parameter.data = parameter.data.bfloat16().float()
    after = gradient(embedder, torch.bfloat16)
    assert all(torch.equal(after[name], before[name]) for name in before)
    linear = [m.weight for m in embedder.backbone.modules() if type(m) is torch.nn.Linear]
    assert chosen.issuperset(linear) and len(linear) > 5


def test_weights_that_are_used_in_more_than_products_are_not_chosen(tiny_bert):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert), **PARTS["dora"]))
    assert not base_dtype.product_weights(embedder.backbone)  # DoRA also measures their rows
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert)))
    embedder.backbone.head = torch.nn.Bilinear(2, 2, 2)
    shared = embedder.backbone.head.weight = embedder.backbone.encoder.layer[0].output.dense.weight
    chosen = base_dtype.product_weights(embedder.backbone)
    assert shared not in chosen and embedder.backbone.encoder.layer[1].output.dense.weight in chosen
    assert not base_dtype.product_weights(torch.nn.Sequential(torch.nn.Linear(2, 2)))  # code that is not known


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_dora_begins_as_the_rounded_base(tmp_path, family):
    folder = tiny.model(tmp_path / "model", family, FAMILIES[family])
    configs = [ModelConfig(path=str(folder), **PARTS[part]) for part in ("dora", "lora")]
    dora, lora = (load_embedder(config, base="bf16")[0] for config in configs)
    assert torch.allclose(gradient(dora)[""], gradient(lora)[""], atol=1e-6)
    published = load_embedder(ModelConfig(path=str(folder), **PARTS["dora"]))[0].trained()
    apart = []
    for name, parameter in dora.trained().items():
        layer, _, kind = name.partition(".lora_magnitude_vector")
        if kind:
            rows = dora.backbone.get_submodule(layer).base_layer.weight.float().norm(dim=1)
            assert torch.allclose(parameter, rows, rtol=1e-6)
            apart.append((parameter / published[name] - 1).abs().max().item())
    assert max(apart) > 1e-5, "the lengths of the published rows are others"


def test_auto_is_bf16_where_a_gpu_computes_in_bf16():
    cpu, cuda, mps = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
    half = torch.bfloat16
    assert [base_dtype.resolve("auto", device, half) for device in (cpu, cuda, mps)] == ["fp32", "bf16", "bf16"]
    assert [base_dtype.resolve("auto", cuda, compute) for compute in (None, torch.float16)] == ["fp32", "fp32"]
    assert base_dtype.resolve("auto", cuda, half, fp32_base=True) == "fp32"
    assert [base_dtype.resolve(asked, cpu, None) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_dtype_that_would_do_nothing_or_is_not_known_to_be_right_is_refused(tmp_path, tiny_bert):
    with pytest.raises(ValueError, match="base_dtype: is bf16, but no weight is frozen"):
        ModelConfig(path=str(tiny_bert), base_dtype="bf16")
    folder = tiny.own_code(tmp_path / "own")
    with pytest.raises(BadInput, match=r"model\.base_dtype: the folder's own code is run"):
        read_spec(ModelConfig(path=str(folder), trust_remote_code=True, base_dtype="bf16", **LORA), folder)
    folder = tiny.model(tmp_path / "deberta", "deberta")
    with pytest.raises(BadInput, match=r"model\.base_dtype: bf16 is not exact"):
        read_spec(ModelConfig(path=str(folder), base_dtype="bf16", **LORA), folder)


def run_values(folder, model, shards, **section) -> str:
    path = folder / "run.json"
    values = {"output_dir": str(folder / "run"), "model": {"path": str(model), **LORA, **section}}
    values |= {"data": {"train": str(shards)}, "optim": {"lr": 1e-2}}
    path.write_text(json.dumps(values | {"train": {"batch_size": 16, "epochs": 2, "steps_per_epoch": 2}}))
    return str(path)


def test_a_run_goes_on_with_the_dtype_it_began_with(tmp_path, tiny_bert, tiny_shards, monkeypatch, capsys):
    path = run_values(tmp_path, tiny_bert, tiny_shards)
    monkeypatch.setattr("trainer.train.setup.resolve", lambda *_: "bf16")  # as on a GPU
    assert train(["--config", path]) == 0
    assert "frozen weights in bf16: " in capsys.readouterr().err
    expected = (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr("trainer.train.setup.resolve", base_dtype.resolve)  # a CPU: auto would be fp32
    for name in ("final", "checkpoint-epoch-2"):
        shutil.rmtree(tmp_path / "run" / name)
    assert train(["--config", path, "--resume"]) == 0
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes() == expected
    record = tmp_path / "run" / "run.json"
    values = json.loads(record.read_text())
    assert values.pop("base_dtype") == "bf16"
    record.write_text(json.dumps(values))  # as of an earlier version
    for name in ("final", "checkpoint-epoch-2"):
        shutil.rmtree(tmp_path / "run" / name)
    assert train(["--config", path, "--resume"]) == 0
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes() != expected, "fp32"


def written(folder, base, lose: bool = True, **section):
    """The folder of an adapter with something to add, as a run in bf16 writes it; and its embedder."""
    config = ModelConfig(path=str(base), **(section or LORA))
    embedder, tokenizer, spec, _ = load_embedder(config, base="bf16")
    assert bool(embedder.rounded.changed) is lose
    tiny.fill_adapter(embedder)
    embedder.adapter.base_sha256 = weights_sha256(base)
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
    folder.mkdir(parents=True)
    save_embedder(folder, engine.weights(), embedder, tokenizer, spec)
    probe = take_probe(engine, tokenizer, spec)
    probe.write(folder)
    return probe


def test_merging_adds_to_the_published_weights_and_says_the_difference(tmp_path, tiny_bert, capsys):
    probe = written(tmp_path / "adapter", tiny_bert)
    assert probe.base_rounded and probe.rounded and read_probe(tmp_path / "adapter").base_rounded
    assert merge(str(tiny_bert), tmp_path / "adapter", tmp_path / "merged") < 1e-5
    assert "trained on its base in bf16" in capsys.readouterr().err
    merged, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", tiny_bert))
    own = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "encoder.layer.0.attention.self.query"
    a, b = (own[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert torch.allclose(merged[f"{name}.weight"], base[f"{name}.weight"] + 32 / 3 * b @ a, atol=1e-6)
    words = "embeddings.word_embeddings.weight"
    assert torch.allclose(merged[words], base[words], atol=0)


def test_a_difference_that_rounding_does_not_explain_is_refused(tmp_path, tiny_bert):
    probe = written(tmp_path / "adapter", tiny_bert)
    replace(probe, queries=probe.queries[::-1].copy()).write(tmp_path / "adapter")
    with pytest.raises(Failed, match="whose base was rounded to bf16"):
        merge(str(tiny_bert), tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_that_was_published_in_bf16_loses_nothing(tmp_path, tiny_bert):
    published = shutil.copytree(tiny_bert, tmp_path / "base")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    probe = written(tmp_path / "adapter", published, lose=False)
    assert not probe.rounded and not probe.base_rounded, "the strict bound of export"


def test_export_proves_the_adapter_and_the_merged_model_within_the_bound_of_rounded_bases(
    tmp_path, tiny_bert, tiny_shards
):
    path = run_values(tmp_path, tiny_bert, tiny_shards, base_dtype="bf16")
    assert train(["--config", path]) == 0
    for whole in (False, True):
        export(tmp_path / "run", tmp_path / f"export {whole}", merge=whole)
    assert read_probe(tmp_path / "run" / "final").limit == 0.999


def test_frozen_layers_are_written_as_they_were_trained(tmp_path, tiny_bert, tiny_shards):
    path = run_values(tmp_path, tiny_bert, tiny_shards)
    values = json.loads((tmp_path / "run.json").read_text())
    values["model"] = {"path": str(tiny_bert), "base_dtype": "bf16", **PARTS["frozen layers"]}
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert train(["--config", path]) == 0
    final, base = (load_file(f / "model.safetensors") for f in (tmp_path / "run" / "final", tiny_bert))
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["dtype"] == "float32"
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(final[words], base[words].to(torch.bfloat16).float())
    export(tmp_path / "run", tmp_path / "export")
    assert read_probe(tmp_path / "run" / "final").limit == 0.9999


def test_a_config_says_the_dtype_by_name_only(tmp_path, tiny_bert, tiny_shards):
    with pytest.raises(BadInput, match="base_dtype"):
        load_config(run_values(tmp_path, tiny_bert, tiny_shards, base_dtype="fp16"))


def test_embeddings_stay_near_those_of_the_published_base(tiny_bert):
    config = ModelConfig(path=str(tiny_bert), **LORA)
    vectors = []
    for base in ("fp32", "bf16"):
        embedder, tokenizer, _, _ = load_embedder(config, base=base)
        engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
        vectors.append(encode(engine, tokenizer, ["w1 w2 w3", "w4"], "", 32))
    assert F.cosine_similarity(*vectors).min() > 0.999
