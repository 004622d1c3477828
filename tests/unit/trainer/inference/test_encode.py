"""Texts over ranks: the same vectors on any number of them, each text embedded once."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import Failed
from trainer.config.sections import ModelConfig
from trainer.distributed.collectives import World
from trainer.inference import encode as encoding
from trainer.inference.encode import cut, encode, encode_share
from trainer.inference.searching import in_memory
from trainer.inference.text_encoder import TextEncoder

TEXTS = [" ".join(f"w{(7 * i + j) % 400}" for j in range(1 + (i * i) % 23)) for i in range(60)]
TEXTS[40:50] = TEXTS[:10]  # equal texts


@pytest.fixture(scope="module")
def loaded(tiny_bert):
    return TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu").loaded


def of_ranks(loaded, ranks: int, monkeypatch) -> list:
    """Returns the texts of each rank; without lockstep nothing is collective."""
    engine, tokenizer = loaded
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(engine, "world", World(rank, ranks))
        shares.append(encode_share(engine, tokenizer, TEXTS, "", 12))
    return shares


def test_one_two_and_three_ranks_give_the_same_bits(loaded, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_TOKENS", {"cpu": 40})
    wholes = []
    for ranks in (1, 2, 3):
        shares = of_ranks(loaded, ranks, monkeypatch)
        rows = torch.cat([share.rows for share in shares])
        assert sorted(rows.tolist()) == list(range(len(TEXTS)))
        assert all(len(share.rows) > 60 / ranks / 2 for share in shares), "each has its part"
        vectors, truncated = (
            torch.cat([getattr(s, n) for s in shares])[rows.argsort()] for n in ("vectors", "truncated")
        )
        wholes.append(vectors)
        assert truncated.tolist() == [len(text.split()) > 10 for text in TEXTS]
    assert torch.equal(wholes[0], wholes[1]) and torch.equal(wholes[0], wholes[2])
    assert torch.equal(wholes[0][40:50], wholes[0][:10]), "equal texts have equal vectors"


def test_blocks_change_nothing_and_the_order_is_that_of_the_texts(loaded, monkeypatch):
    engine, tokenizer = loaded
    whole = encode(engine, tokenizer, TEXTS, "", 12)
    alone = torch.cat([encode(engine, tokenizer, [text], "", 12) for text in TEXTS[:20]])
    assert torch.allclose(whole[:20], alone, atol=1e-6)
    assert encode(engine, tokenizer, [], "", 12).shape == (0, engine.embedder.size)


def test_each_distinct_text_is_tokenised_once(loaded, monkeypatch):
    seen = []
    real = encoding.tokenize_each
    monkeypatch.setattr(encoding, "tokenize_each", lambda texts, *rest: seen.extend(texts) or real(texts, *rest))
    engine, tokenizer = loaded
    encode(engine, copy.deepcopy(tokenizer), TEXTS, "", 12)
    assert sorted(seen) == sorted(set(TEXTS))


@given(st.lists(st.integers(1, 500), max_size=300), st.integers(10, 3000))
def test_blocks_hold_every_text_once_longest_first_and_about_the_same_work(weights, budget):
    weights = np.array(weights, np.int64)
    blocks = cut(weights, budget)
    order = np.concatenate([*blocks, np.empty(0, np.int64)])
    assert sorted(order.tolist()) == list(range(len(weights)))
    assert (np.diff(weights[order]) <= 0).all()
    size = max(budget, int(weights.sum()) // encoding.BLOCKS)
    assert all(weights[block].sum() < size + 500 for block in blocks)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_the_bits_scores_stay_close(tiny_bert, precision):
    config = ModelConfig(path=str(tiny_bert))
    sides = [TextEncoder(config, "cpu", precision=one).passages(TEXTS) for one in ("fp32", precision)]
    scores, rounded = (side @ side.T for side in sides)
    assert 1e-6 < np.abs(scores - rounded).max() < 0.01
    assert (sides[0] * sides[1]).sum(axis=1).min() > 0.999


def test_the_default_precision():
    from trainer.distributed.device import chosen_precision

    assert [chosen_precision("auto", device) for device in ("cpu", "mps")] == ["fp32", "fp32"]
    assert chosen_precision("fp16", "cpu") == "fp16"


def test_embeddings_that_are_no_numbers_are_refused(tiny_bert, monkeypatch):
    encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")
    engine = encoder.loaded[0]
    real = engine.embed
    monkeypatch.setattr(engine, "embed", lambda *args, **more: real(*args, **more) * float("nan"))
    with pytest.raises(Failed, match="gives no number for 3 of 3 texts"):
        encoder.passages(["w1", "w2", "w2"])


def test_search_in_memory_keeps_the_order_of_equal_scores_and_gives_cosines(tiny_bert):
    encoder = TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu")
    texts = ["w1 w2 w3", "w9", "w1 w2 w3", "w7 w8"]
    (hits,) = in_memory(encoder, ["c", "b", "a", "d"], texts)(["w1 w2 w3"], 3)
    assert [hit.id for hit in hits[:2]] == ["c", "a"] and hits[0].similarity == hits[1].similarity
    assert hits[0].similarity == pytest.approx(1.0, abs=1e-6) and len(hits) == 3
