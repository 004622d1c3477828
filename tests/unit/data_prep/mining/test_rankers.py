"""Rankers of mining against closed forms and brute force: by words, by embeddings, and the index for many of them."""

import math
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.mining.bm25 import Bm25
from data_prep.mining.candidates import Corpus
from data_prep.mining.ranker import best
from data_prep.mining.vector_cache import VectorCache
from tests.unit.data_prep.mining.helpers import QUICK, Planted, dense_of


@QUICK
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(1, 45))
def test_best_is_a_stable_sort(values, count):
    scores = np.array(values, np.float32)
    scores[scores == -4] = -np.inf
    expected = [i for i in np.argsort(-scores, kind="stable") if scores[i] > -np.inf][:count]
    assert best(scores, count).tolist() == expected


def okapi(query: list[str], text: list[str], texts: list[list[str]], k1: float = 1.5, b: float = 0.75) -> float:
    """Robertson and Zaragoza 2009, with Lucene's idf and without the constant k1 + 1."""
    mean, total = sum(map(len, texts)) / len(texts), 0.0
    for word in query:
        holding = sum(word in other for other in texts)
        count = text.count(word)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        total += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
    return total


def test_bm25_is_the_formula_and_ranks_what_brute_force_ranks():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(60)]
    queries = [" ".join(rng.choice(words, 3, replace=False)) for _ in range(20)] + ["unknown words"]
    corpus = Corpus()
    for i, text in enumerate(texts):
        corpus.add(text, f"d{i}", {})
    corpus.seal()
    ranker, everywhere = Bm25(corpus), np.arange(len(corpus.texts))
    banned = [np.array([i, i + 20]) for i in range(20)] + [np.array([0])]
    split = [text.split() for text in corpus.texts]
    for query, places, ranked, scores in zip(
        queries, banned, ranker.rank(queries, banned, 10), ranker.scores(queries, [everywhere] * len(queries))
    ):
        expected = [okapi(query.split(), text, split) for text in split]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        free = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0 and i not in places]
        assert ranked.places.tolist() == free[:10]
        last = scores[free[9]] if len(free) >= 10 else 0.0
        assert ranked.banned == sum(scores[i] > last for i in places)


@pytest.mark.parametrize("approximate_above", [10**9, 0], ids=["exact", "index of everything"])
def test_dense_ranks_what_brute_force_ranks(tmp_path, approximate_above, monkeypatch):
    monkeypatch.setattr(
        "data_prep.mining.dense_search.SCORES_AT_ONCE", 7 * 300
    )  # several blocks of queries, and of passages
    monkeypatch.setattr("data_prep.mining.dense_search.GATHERED", 64)
    encoder, corpus = Planted(size=16), Corpus()
    for i in range(300):
        corpus.add(f"text {i}", f"d{i}", {})
    corpus.seal()
    queries = [f"query {i}" for i in range(25)]
    rng = np.random.default_rng(1)
    banned = [np.sort(rng.choice(300, 12, replace=False)) for _ in queries]
    with closing(VectorCache(tmp_path, "passages", 16, encoder.passages, 50)) as earlier:  # in another order on disk
        earlier.rows(corpus.texts[200:] + corpus.texts[:50])
    ranker = dense_of(corpus, encoder, tmp_path, approximate_above)
    vectors = np.stack([encoder[text] for text in corpus.texts])
    for query, places, ranked in zip(queries, banned, ranker.rank(queries, banned, 20)):
        scores = vectors @ encoder[query]
        free = [i for i in np.argsort(-scores) if i not in places][:20]
        assert ranked.places.tolist() == free
        assert ranked.banned == sum(scores[i] > scores[free[-1]] for i in places)
    shuffled = [rng.permutation(300)[:9] for _ in queries]
    for query, places, scores in zip(queries, shuffled, ranker.scores(queries, shuffled)):
        np.testing.assert_allclose(scores, vectors[places] @ encoder[query], rtol=1e-5, atol=1e-6)


def test_the_index_finds_what_exact_search_finds(tmp_path):
    """Recall of the 50 best among 4,000 clustered embeddings, and their exact scores."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    texts = [f"text {i}" for i in range(4000)]
    drawn = centres[rng.integers(0, 40, 4000)] + 0.5 * rng.standard_normal((4000, 32))
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    queries = [f"query {i}" for i in range(100)]
    asked = vectors[rng.choice(4000, 100, replace=False)]
    encoder = Planted(dict(zip(texts, vectors)) | dict(zip(queries, asked)), size=32)
    corpus = Corpus()
    for text in texts:
        corpus.add(text, text, {})
    corpus.seal()
    ranker = dense_of(corpus, encoder, tmp_path, approximate_above=3999)
    nothing = [np.empty(0, np.int64)] * 100
    found = [ranked.places for ranked in ranker.rank(queries, nothing, 50)]
    exact = np.argsort(-(asked @ vectors.T), axis=1)[:, :50]
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 50 for a, b in zip(found, exact)])
    assert recall >= 0.97
    for query, places in zip(asked, found):
        scores = vectors[places] @ query
        assert (np.diff(scores) <= 1e-6).all()
