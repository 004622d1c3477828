"""Recomputed blocks draw the same dropout again where torch does not restore the generator of the device itself."""

import pytest
import torch

from tests.multiprocess.dense import relative_error
from trainer.config.sections import ModelConfig
from trainer.model import recompute
from trainer.model.build import load_embedder


def gradients(folder, recomputed: bool) -> dict[str, torch.Tensor]:
    embedder, *_ = load_embedder(ModelConfig(path=str(folder), dropout="model"))
    embedder.train()
    if recomputed:
        embedder.recompute()
    tokens = torch.randint(4, 400, (60,), generator=torch.manual_seed(1))
    embedder(tokens, [20, 20, 20], seed=3, prompts=[2, 0, 5]).square().sum(dim=0)[:5].sum().backward()
    return {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("restored", [True, False])
def test_dropout_of_an_apple_gpu_is_drawn_again(tiny_bert, monkeypatch, restored):
    """The CPU's generator stands for the Apple GPU's; torch's own restoring is off, as it is there."""
    plain = gradients(tiny_bert, False)
    monkeypatch.setattr(recompute, "on_apple_gpu", lambda inputs: restored)
    monkeypatch.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", torch.set_rng_state)
    once = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: once(*a, **{**k, "preserve_rng_state": False}))
    assert (relative_error(gradients(tiny_bert, True), plain) < 1e-6) is restored
