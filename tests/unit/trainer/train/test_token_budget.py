"""train.micro_batch_tokens: auto is a number between a chunk and MOST that follows the memory that is free."""

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
from trainer.train.token_budget import MOST, activation_bytes_per_token, optimizer_bytes, resolve_budget


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


def test_auto_lies_between_a_chunk_and_the_most(tiny_bert, monkeypatch):
    engine, spec = engine_of(tiny_bert)
    assert CHUNK_TOKENS["cpu"] <= resolve_budget("auto", engine, spec) <= MOST
    assert with_free(monkeypatch, 0, engine, spec) == CHUNK_TOKENS["cpu"]
    assert with_free(monkeypatch, 2**60, engine, spec) == MOST


def test_auto_shrinks_with_the_free_memory_after_the_optimizers_share(tiny_bert, monkeypatch):
    engine, spec = engine_of(tiny_bert)
    per_token = activation_bytes_per_token(engine, spec.rules.passage_max_len)
    for tokens in (100_000, 50_000):
        free = optimizer_bytes(engine) + tokens * per_token
        assert with_free(monkeypatch, free, engine, spec) == pytest.approx(memory.SHARE * tokens, rel=0.01)


def test_bytes_per_token_grow_with_layers(tmp_path):
    """Each layer keeps about as much as another: the steps are equal."""
    found = []
    for layers in (1, 2, 4):
        folder = tiny.model(tmp_path / str(layers), layers=layers)
        found.append(activation_bytes_per_token(engine_of(folder)[0], 32))
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
        found.append(activation_bytes_per_token(engine, 32))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    alone = memory.free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)
