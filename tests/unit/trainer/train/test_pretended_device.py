"""A step on a pretended accelerator: no mixed devices, the CPU's numbers, and few synchronisations."""

from contextlib import nullcontext

import pytest
import torch

from tests import tiny
from tests.multiprocess.dense import relative_error
from tests.pretended_device import META, Pretended
from tests.unit.trainer.train.test_step import engine_and_batch
from trainer.config.sections import LossConfig
from trainer.engine.chunks import CHUNK_TOKENS
from trainer.engine.torch_engine import TorchEngine
from trainer.loss.objective import Objective
from trainer.train.step import compute_gradients

SYNCHRONISATIONS = 12  # of a step at most, whatever the number of chunks
LOSSES = [
    {},
    {"temperature_lr": 0.01},
    {"directions": "symmetric"},
    {"directions": "gte"},
    {"mask_margin": 0.1},
    {"mask_ratio": 0.9},
    {"mask_duplicates": False},
    {"matryoshka": [8, 16]},
    {"negatives": "device"},
    {"name": "cosent"},
    {"name": "cosent", "temperature_lr": 0.01},
    {"name": "kl"},
    {"name": "margin_mse"},
    {"name": "cosine"},
    {"name": "trainer.loss.functions:cosine_of_pairs"},
]


def on_device(device: Pretended, engine: TorchEngine, monkeypatch) -> TorchEngine:
    """The engine's model moved to the pretended device, where texts are padded."""
    device.take(engine.embedder)
    engine.device = META
    monkeypatch.setitem(CHUNK_TOKENS, "meta", CHUNK_TOKENS["cpu"])
    monkeypatch.setattr("trainer.distributed.device.UNHURRIED", {"meta"})
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    engine.named = engine.embedder.trained()
    return engine


def padded(folder, shards, monkeypatch, **model):
    monkeypatch.setattr("trainer.model.embedder.why_padded", lambda *_: "padded here")
    return engine_and_batch(folder, shards, **model)


def compare(engine, batch, monkeypatch, loss: dict, tokens: int) -> Pretended:
    """The device, after its step gave the CPU's loss and gradient."""
    expected = compute_gradients(engine, batch, Objective(LossConfig(**loss), True), tokens)
    gradients = engine.gradients()
    with Pretended() as device:
        on_device(device, engine, monkeypatch)
        device.synchronisations.clear()
        stats = compute_gradients(engine, batch, Objective(LossConfig(**loss), True), tokens)
        found = {name: parameter.grad.real_ for name, parameter in engine.named.items()}
    assert stats.loss == pytest.approx(expected.loss, abs=1e-6)
    assert relative_error(found, gradients) < 1e-5
    return device


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_every_loss_stays_on_the_device(tiny_bert, tiny_shards, monkeypatch, loss):
    engine, batch = padded(tiny_bert, tiny_shards, monkeypatch)
    batch.scores = torch.linspace(0, 1, batch.rows, dtype=torch.float64)
    batch.teacher_positive = torch.linspace(0, 1, batch.rows, dtype=torch.float64)
    batch.teacher_negative = torch.linspace(0, 1, len(batch.tokens) - 2 * batch.rows, dtype=torch.float64)
    device = compare(engine, batch, monkeypatch, loss, tokens=400)
    assert device.synchronisations.total() <= SYNCHRONISATIONS, device.synchronisations


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_every_family_stays_on_the_device_whatever_the_number_of_chunks(tmp_path, tiny_shards, monkeypatch, family):
    engine, batch = padded(tiny.model(tmp_path / family, family), tiny_shards, monkeypatch)
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", 64)
    device = compare(engine, batch, monkeypatch, {}, tokens=128)
    ours = [place for place in device.synchronisations.elements() if "transformers/" not in place]
    assert len(ours) <= SYNCHRONISATIONS, device.synchronisations
