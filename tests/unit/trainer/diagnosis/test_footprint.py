"""The traced memory and work of a model, against real models, real passes and closed forms."""

import json

import pytest
import torch

from tests import tiny
from trainer.config.loading import load_config
from trainer.diagnosis.footprint import footprint, prime
from trainer.model.build import build_embedder, count_parameters
from trainer.model_folder.spec import read_spec


def config_of(folder, **model):
    values = {"output_dir": "o", "model": {"path": str(folder), **model}, "data": {"train": "d"}}
    path = folder.parent / f"{folder.name}-{len(model)}.json"
    path.write_text(json.dumps(values))
    return load_config(path)


LORA, FROZEN = {"finetune": "lora"}, {"freeze": {"layers": 1}}
MODELS = [("bert", LORA), ("bert", FROZEN), ("qwen3", LORA), ("modernbert", {}), ("t5", {})]


@pytest.mark.parametrize(
    ("family", "mode"), MODELS, ids=[f"{family}-{next(iter(mode), 'full')}" for family, mode in MODELS]
)
def test_a_footprint_counts_the_parameters_of_the_real_model(tmp_path, family, mode):
    config = config_of(tiny.model(tmp_path / family, family, tiny.FAMILIES[family]), **mode)
    spec = read_spec(config.model, config.model.path)
    found = footprint(config, spec, "cpu", 200, 20)
    embedder, _ = build_embedder(spec, config.model)
    trained = sum(p.numel for p in found.parameters if p.trained)
    assert (trained, sum(p.numel for p in found.parameters)) == count_parameters(embedder)
    assert found.size == 32
    chunk = found.chunk(200)
    assert 0 < chunk.kept < chunk.first


def test_a_footprint_follows_what_a_real_pass_keeps(tiny_bert):
    """The same count, of real tensors, by torch's own hooks."""
    config = config_of(tiny_bert)
    spec = read_spec(config.model, config.model.path)
    embedder, _ = build_embedder(spec, config.model)
    embedder.pack(torch.device("cpu"))
    weights, kept = {p.untyped_storage()._cdata for p in embedder.parameters()}, {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = embedder(torch.ones(198, dtype=torch.int64), [18] * 11, 0)
    found = footprint(config, spec, "cpu", 200, 20).chunk(198)
    assert found.kept == pytest.approx(sum(kept.values()) + out.untyped_storage().nbytes(), rel=0.02)


def test_recomputed_blocks_keep_less(tiny_bert):
    config = config_of(tiny_bert)
    spec = read_spec(config.model, config.model.path)
    found = footprint(config, spec, "cpu", 200, 20, recompute=True)
    assert found.chunk(200, recompute=True).kept < found.chunk(200).kept / 2


ONE_BLOCK = ["3.self_attn.q_proj", "down_proj"]
DEEP = {  # family, blocks (some of each kind stand for others), mode of the model section, precision and device
    "bert": ("bert", 5, {}, "fp32", "cpu"),
    "bert-bf16": ("bert", 5, {}, "bf16", "cuda"),
    "frozen-blocks": ("bert", 7, {"freeze": {"layers": 3}}, "fp32", "cpu"),
    "frozen-below": ("bert", 7, {"freeze": {"layers": 3, "embeddings": True}}, "fp32", "cpu"),
    "dropout": ("bert", 5, {"dropout": "model"}, "fp32", "cpu"),
    "qwen3-lora": ("qwen3", 5, {"finetune": "lora"}, "bf16", "cuda"),
    "qwen3-dora": ("qwen3", 5, {"finetune": "lora", "lora": {"dora": True}}, "fp32", "cpu"),
    "one-block": ("qwen3", 5, {"finetune": "lora", "lora": {"targets": ONE_BLOCK}}, "fp32", "cpu"),
    "modernbert": ("modernbert", 9, {}, "bf16", "cuda"),  # every second sees a window only, the first has no norm
    "t5": ("t5", 6, {}, "fp32", "cpu"),  # the first block makes the position bias of all
    "gemma3": ("gemma3", 7, {}, "fp32", "cpu"),
}


@pytest.mark.parametrize("case", DEEP)
def test_a_trace_of_some_blocks_is_that_of_all(tmp_path, case):
    """Memory at every chunk size and the work, with recomputation and without."""
    family, layers, model, precision, device = DEEP[case]
    folder = tiny.model(tmp_path / "model", family, tiny.FAMILIES.get(family, "mean"), layers=layers)
    config = config_of(folder, **model)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    spec = read_spec(config.model, folder)
    few, every = (footprint(config, spec, device, 400, 20, recompute=True, whole=whole) for whole in (False, True))
    assert few.parameters == every.parameters
    assert (few.buffers, few.buckets, few.attention) == (every.buffers, every.buckets, every.attention)
    for tokens in (64, 500, 30_000):
        for recompute in (False, True):
            one, other = few.chunk(tokens, recompute), every.chunk(tokens, recompute)
            assert (one.kept, one.first, one.later) == pytest.approx((other.kept, other.first, other.later), rel=0.002)
    for one, other in ((few.plain, every.plain), (few.recomputed, every.recomputed)):
        for effort, whole in ((one.forward, other.forward), (one.backward, other.backward)):
            assert effort.operations == pytest.approx(whole.operations, rel=0.002)
            assert effort.started == pytest.approx(whole.started, rel=0.01)
            assert effort.moved.at(500) == pytest.approx(whole.moved.at(500), rel=0.002)


def test_the_work_of_a_full_run_is_two_operations_for_each_weight_and_twice_that_backward(tmp_path):
    config = config_of(tiny.model(tmp_path / "bert", layers=4))
    found = footprint(config, read_spec(config.model, tmp_path / "bert"), "cpu", 400, 20, recompute=True)
    block = 4 * 32 * 32 + 2 * 32 * 64  # query, key, value, output; two of the feed-forward layer
    assert found.plain.forward.operations == 2 * 4 * block
    assert found.plain.backward.operations == 2 * 2 * 4 * block
    assert found.recomputed.forward.operations == 2 * 4 * block
    # what comes behind the last tensor that is kept, the output layer's product, is not made again
    assert 4 * 4 * block < found.recomputed.backward.operations <= 6 * 4 * block
    assert found.attention == 4 * 32


def test_the_work_of_adapters_is_that_of_the_inputs_gradient(tmp_path):
    """Backward: the frozen weights give the gradient of their input alone, half of a full run's work."""
    config = config_of(tiny.model(tmp_path / "bert", layers=4), finetune="lora", lora={"r": 1})
    found = footprint(config, read_spec(config.model, tmp_path / "bert"), "cpu", 400, 20)
    block = 4 * 32 * 32 + 2 * 32 * 64
    adapters = 4 * (32 + 32) + 2 * (32 + 64)
    assert found.plain.forward.operations == 2 * 4 * (block + adapters)
    backward = 2 * 4 * (block + 2 * adapters)
    # the first block's query, key and value: nothing below them is trained
    assert found.plain.backward.operations == backward - 2 * (3 * 32 * 32 + 3 * 32)


def test_copies_of_weights_count_once_per_chunk_and_activations_per_token(tmp_path):
    """bf16: autocast keeps a copy of every matrix for the backward pass; a frozen base in bf16 needs none."""
    folder = tiny.model(tmp_path / "qwen3", "qwen3", "last", layers=4)
    kept = {}
    for mode in ("full", "lora"):
        config = config_of(folder, finetune=mode, **({"lora": {"r": 1}} if mode == "lora" else {}))
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "bf16"})})
        kept[mode] = footprint(config, read_spec(config.model, folder), "cuda", 400, 20).plain.kept
    block = 32 * (32 + 2 * 16 + 32) + 3 * 32 * 64  # query, key and value of one head, output; gate, up, down
    assert kept["full"].fixed == pytest.approx(2 * 4 * block, rel=0.3)
    assert kept["lora"].fixed < kept["full"].fixed / 5


@pytest.mark.parametrize(("number", "expected"), [(2, 2), (5, 5), (20, 19), (25, 23), (100, 97)])
def test_primes(number, expected):
    assert prime(number) == expected
