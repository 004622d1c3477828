"""Texts end to end give what padded texts give, value and gradient, for every family; dropout is what it says."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.model.build import load_embedder
from trainer.model.packing import Noise, Packing, QuickDropout, Run, _PackedAttention, runs_of

LENGTHS = [9, 9, 6, 5, 5, 5, 1]


@pytest.fixture(scope="module", params=["bert", "xlm-r", "qwen2", "llama"])
def family(request, tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("family") / request.param, request.param)


def embedded(embedder, pooling: str, autocast=None) -> tuple[torch.Tensor, dict]:
    """Embeddings of seven texts and the gradient of a fixed direction of theirs."""
    embedder.pooling = pooling
    tokens = torch.randint(4, 400, (sum(LENGTHS),), generator=torch.manual_seed(1))
    embedder.zero_grad()
    out = embedder(tokens, LENGTHS, seed=3, autocast=autocast)
    (out * torch.randn(out.shape, generator=torch.manual_seed(2))).sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("probabilities", [2**24, 100])  # all at once; some texts, and some heads, at a time
def test_packed_texts_equal_padded_texts(family, pooling, probabilities, monkeypatch):
    monkeypatch.setattr("trainer.model.packing.PROBABILITIES", probabilities)
    padded, *_ = load_embedder(ModelConfig(path=str(family)))
    packed = copy.deepcopy(padded)
    packed.pack(torch.device("cpu"))
    assert packed.packing and not padded.packing
    (out, grads), (expected, expected_grads) = embedded(packed, pooling), embedded(padded, pooling)
    assert torch.allclose(out, expected, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    whole = torch.cat([g.flatten() for g in expected_grads.values()])
    assert (torch.cat([grads[n].flatten() for n in expected_grads]) - whole).norm() < 1e-5 * whole.norm()


def test_packed_bf16_is_as_near_to_fp32_as_padded_bf16(tiny_bert):
    padded, *_ = load_embedder(ModelConfig(path=str(tiny_bert)))
    packed = copy.deepcopy(padded)
    packed.pack(torch.device("cpu"))
    exact, _ = embedded(padded, "mean")
    errors = [(embedded(e, "mean", torch.bfloat16)[0] - exact).norm() for e in (packed, padded)]
    assert errors[0] < 1.5 * errors[1] + 1e-4


def test_a_family_whose_attention_is_not_understood_stays_padded(tiny_bert):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny_bert)))
    embedder.backbone.config.model_type = "mpnet"
    assert not Packing.fits(embedder.backbone, torch.device("cpu"))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_runs_cover_all_tokens_in_order(lengths):
    runs = runs_of(lengths)
    assert [run.length for run in runs for _ in range(run.count)] == lengths
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]


def test_dropout_drops_the_stated_share_and_keeps_the_mean():
    noise = Noise()
    noise.reseed(7)
    x = torch.ones(1_000_000)
    out = QuickDropout(0.1, noise)(x)
    share = (out == 0).float().mean().item()
    assert abs(share - 0.1) < 5 * (0.09 / len(x)) ** 0.5  # five standard deviations
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.9))


def test_the_same_seed_gives_the_same_dropout_and_another_one_another():
    noise, x = Noise(), torch.ones(100)
    noise.reseed(1)
    first = QuickDropout(0.5, noise)(x)
    following = QuickDropout(0.5, noise)(x)
    noise.reseed(1)
    assert torch.equal(QuickDropout(0.5, noise)(x), first)
    assert not torch.equal(first, following)


def test_the_gradient_goes_through_the_kept_elements_only():
    noise = Noise()
    x = torch.randn(1000, requires_grad=True)
    out = QuickDropout(0.3, noise)(x)
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0)
    assert torch.allclose(x.grad[x.grad != 0], torch.tensor(1 / 0.7))


def test_attention_dropout_has_the_gradient_of_its_own_output():
    """Against finite differences: the same noise again for every evaluation."""
    generator = torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 7, 4, generator=generator).requires_grad_() for _ in range(3))
    direction = torch.randn(1, 7, 2, 4, generator=generator)

    def value(q, k, v):
        noise = Noise()
        noise.reseed(5)
        out = _PackedAttention.apply(q, k, v, [Run(0, 2, 3), Run(6, 1, 1)], 0.5, False, 0.4, noise)
        return (out * direction).sum()

    grads = torch.autograd.grad(value(q, k, v), [q, k, v])
    for at, grad in enumerate(grads):
        step = torch.randn(grad.shape, generator=generator)
        inputs = [[q, k, v], [q, k, v]]
        for side, sign in zip(inputs, (1, -1)):
            side[at] = side[at] + sign * 1e-2 * step
        difference = (value(*inputs[0]) - value(*inputs[1])).item() / 2e-2
        assert difference == pytest.approx((grad * step).sum().item(), rel=2e-2, abs=2e-3)


def test_without_dropout_it_is_torchs_attention():
    generator = torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, generator=generator) for _ in range(3))
    out = _PackedAttention.apply(q, k, v, [Run(0, 1, 6)], 0.5, True, 0.0, Noise())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.allclose(out.transpose(1, 2), expected, atol=1e-6)
