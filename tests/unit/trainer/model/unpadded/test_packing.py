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
from trainer.model.unpadded.attention import Noise, Run, Sees, _PackedAttention, runs_of
from trainer.model.unpadded.packing import Packing, QuickDropout, register, why_padded

LENGTHS = [30, 9, 9, 6, 5, 5, 5, 1]
FAMILIES = ["bert", "xlm-r", "distilbert", "nomic", "gte", "modernbert", "gemma3", "mistral", "qwen2", "qwen3", "llama"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("family") / request.param, request.param)


PROMPTS = [4, 0, 9, 2, 1, 0, 3, 0]  # one text is its prompt only


def embedded(embedder, pooling: str, autocast=None, prompts=None) -> tuple[torch.Tensor, dict]:
    """Embeddings of eight texts and the gradient of a fixed direction of theirs."""
    embedder.pooling = pooling
    tokens = torch.randint(4, 400, (sum(LENGTHS),), generator=torch.manual_seed(1))
    embedder.zero_grad()
    out = embedder(tokens, LENGTHS, seed=3, autocast=autocast, prompts=prompts)
    (out * torch.randn(out.shape, generator=torch.manual_seed(2))).sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
# all at once; some texts, and some heads, at a time, and pooled without their prompts
@pytest.mark.parametrize(("probabilities", "prompts"), [(2**24, None), (100, PROMPTS)])
def test_packed_texts_equal_padded_texts(family, pooling, probabilities, prompts, monkeypatch):
    monkeypatch.setattr("trainer.model.unpadded.attention.PROBABILITIES", probabilities)
    padded, *_ = load_embedder(ModelConfig(path=str(family)))
    packed = copy.deepcopy(padded)
    packed.pack(torch.device("cpu"))
    assert packed.packing and not padded.packing
    (out, grads), (expected, expected_grads) = (embedded(each, pooling, prompts=prompts) for each in (packed, padded))
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
    assert "attention of a mpnet" in why_padded(embedder.backbone, torch.device("cpu"), None, False)


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
        out = _PackedAttention.apply(q, k, v, [Run(0, 2, 3), Run(6, 1, 1)], 0.5, Sees(False, None), 0.4, noise)
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
    out = _PackedAttention.apply(q, k, v, [Run(0, 1, 6)], 0.5, Sees(True, None), 0.0, Noise())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.allclose(out.transpose(1, 2), expected, atol=1e-6)


def kernel_by_the_book(query, key, value, ends, ends_again, longest, longest_again, *, scale, window_size, enable_gqa):
    """torch.nn.attention.varlen.varlen_attn by its documentation, one text at a time: (tokens, heads, size)."""
    assert torch.equal(ends, ends_again) and longest == longest_again == ends.diff().max() and ends.dtype == torch.int32
    assert query.dtype in (torch.bfloat16, torch.float16) and query.dtype == key.dtype == value.dtype
    assert enable_gqa == (query.shape[1] != key.shape[1])
    out = []
    for start, stop in zip(ends.tolist(), ends.tolist()[1:]):
        ahead = torch.arange(stop - start) - torch.arange(stop - start)[:, None]
        left, right = (stop if side < 0 else side for side in window_size)
        parts = (x[start:stop].transpose(0, 1)[None].float() for x in (query, key, value))
        seen = (ahead <= right) & (ahead >= -left)
        text = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        out.append(text[0].transpose(0, 1).to(query.dtype))
    return torch.cat(out)


def with_kernel(embedder, monkeypatch):
    """The embedder as on CUDA in bf16, its kernel replaced."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel_by_the_book)
    register()
    embedder.packing = Packing(embedder.backbone, torch.device("meta"), torch.bfloat16)
    return embedder


@pytest.mark.parametrize("recomputed", [False, True])
def test_around_the_kernel_for_cuda_texts_are_as_near_to_fp32_as_padded_ones(family, recomputed, monkeypatch):
    padded, *_ = load_embedder(ModelConfig(path=str(family)))
    packed = with_kernel(copy.deepcopy(padded), monkeypatch)
    if recomputed:
        packed.recompute()
    exact, exact_grads = embedded(padded, "mean")
    rounded = [embedded(model, "mean", torch.bfloat16) for model in (packed, padded)]
    errors = [(out - exact).norm() for out, _ in rounded]
    assert errors[0] < 1.5 * errors[1] + 1e-4
    whole = {name: grad.flatten() for name, grad in exact_grads.items()}
    slopes = [torch.cat([grads[name].flatten() - whole[name] for name in whole]).norm() for _, grads in rounded]
    assert slopes[0] < 1.5 * slopes[1] + 1e-3 * torch.cat(list(whole.values())).norm()


@pytest.mark.parametrize(
    ("family", "dtype", "dropout", "reason"),
    [
        ("bert", torch.bfloat16, False, None),
        ("modernbert", torch.float16, False, None),
        ("bert", None, False, "computes in bf16 or fp16"),
        ("bert", torch.bfloat16, True, "no dropout, and model.dropout is on"),
        ("t5", torch.bfloat16, False, "attention of a t5 is not known"),
        ("deberta", torch.bfloat16, False, "attention of a deberta-v2 is not known"),
    ],
)
def test_what_keeps_texts_padded_on_cuda_is_said(tmp_path, family, dtype, dropout, reason):
    embedder, *_ = load_embedder(ModelConfig(path=str(tiny.model(tmp_path / "model", family))))
    found = why_padded(embedder.backbone, torch.device("cuda"), dtype, dropout)
    assert found is None if reason is None else reason in found


@given(st.booleans(), st.integers(1, 12), st.integers(1, 12))
def test_a_token_sees_what_the_family_says(causal, window, length):
    hidden = Sees(causal, window).hidden(length, torch.device("cpu"))
    for i in range(length):
        for j in range(length):
            sees = abs(i - j) < window and not (causal and j > i)
            assert sees == (hidden is None or not hidden[i, j])
