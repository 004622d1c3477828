"""train.micro_batch_tokens: auto is a number between the longest text and MOST that follows the free memory."""

import pytest
import torch

from data_prep.common.files import write_json
from tests import tiny
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.torch_engine import TorchEngine
from trainer.model.build import load_embedder
from trainer.run_dir.record import chosen_budget
from trainer.train import token_budget as memory
from trainer.train.token_budget import (
    LEAST,
    MOST,
    Activations,
    activations,
    optimizer_bytes,
    resolve_budget,
    tokens_that_fit,
)


def engine_of(folder) -> tuple[TorchEngine, object]:
    embedder, _, spec, _ = load_embedder(ModelConfig(path=str(folder)))
    return TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None), spec


def with_free(monkeypatch, free: int, engine, spec) -> int:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    return resolve_budget("auto", engine, spec)


def test_a_number_is_taken_as_it_is(tiny_bert):
    assert resolve_budget(777, *engine_of(tiny_bert)) == 777


def test_an_interrupted_run_keeps_its_number_and_another_topology_finds_its_own(tmp_path):
    two, three = ({"processes": n, "engine": "ddp", "device": "cpu"} for n in (2, 3))
    assert chosen_budget(tmp_path, two) is None
    write_json(tmp_path / "run.json", {"topology": two, "plan": {"micro_batch_tokens": 321}})
    assert chosen_budget(tmp_path, two) == 321
    assert chosen_budget(tmp_path, three) is None


def test_auto_lies_between_the_longest_text_and_the_most(tiny_bert, monkeypatch):
    engine, spec = engine_of(tiny_bert)
    assert CHUNK_TOKENS["cpu"] <= resolve_budget("auto", engine, spec) <= MOST
    assert with_free(monkeypatch, 0, engine, spec) == max(LEAST, spec.rules.max_len)
    assert with_free(monkeypatch, 2**60, engine, spec) == MOST


def test_auto_shrinks_with_the_free_memory_after_the_optimizers_share(tiny_bert, monkeypatch):
    engine, spec = engine_of(tiny_bert)
    kept = activations(engine, spec.rules.passage_max_len)
    per_token = kept.per_token + kept.per_chunk / CHUNK_TOKENS["cpu"]
    for tokens in (100_000, 50_000):
        free = optimizer_bytes(engine) + tokens * per_token
        assert with_free(monkeypatch, free, engine, spec) == pytest.approx(memory.SHARE * tokens, rel=0.01)


def test_bytes_per_token_grow_with_layers(tmp_path):
    """Each layer keeps about as much as another: the steps are equal."""
    found = []
    for layers in (1, 2, 4):
        folder = tiny.model(tmp_path / str(layers), layers=layers)
        found.append(activations(engine_of(folder)[0], 32).per_token)
    assert found[0] < found[1] < found[2]
    assert found[2] - found[1] == pytest.approx(2 * (found[1] - found[0]), rel=0.1)


def test_a_recomputed_block_keeps_its_input_however_small_the_embedding_is(tmp_path):
    """And not the embedding, which a dense layer behind the pooling makes smaller."""
    found = []
    for outputs in (32, 4):
        folder = tiny.with_dense(tmp_path / str(outputs), "bert", "mean", [(outputs, True, "Tanh")], normalize=True)
        embedder = load_embedder(ModelConfig(path=str(folder)))[0]
        embedder.recompute()
        engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)
        found.append(activations(engine, 32).per_token)
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    alone = memory.free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)


@pytest.mark.parametrize("family", ["bert", "qwen3", "modernbert"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("length", [8, 60])
def test_what_is_measured_on_two_texts_foretells_a_chunk_of_many(tmp_path, family, dtype, length):
    embedder = load_embedder(ModelConfig(path=str(tiny.model(tmp_path / family, family))))[0]
    engine = TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), dtype)
    kept = activations(engine, length)
    many = memory._kept(engine, 50, length)
    assert 50 * length * kept.per_token + kept.per_chunk == pytest.approx(many, rel=0.05)
    if dtype:
        cast = sum(p.numel() for p in embedder.backbone.parameters() if p.dim() == 2)
        assert kept.per_chunk > cast / 2, "the weights' bf16 copies belong to the chunk, not to its tokens"


@pytest.mark.parametrize(
    ("free", "tokens"),
    [(0, 0), (1_000, 0), (1_000 + 10 * 500, 500), (1_000 + 10 * 1024, 1024), (4 * (1_000 + 10 * 1024), 4096)],
)
def test_constants_of_a_chunk_are_paid_once_for_each(free, tokens):
    assert tokens_that_fit(free, Activations(10.0, 1_000.0), chunk=1024) == tokens
