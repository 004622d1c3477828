"""Exact search: the same results, in the same order, as a full sort, for any number of ranks and any tile."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.distributed.collectives import World
from trainer.ranking import search as searching
from trainer.ranking.keys import NOTHING, merge, numbers_of, pack, scores_of
from trainer.ranking.retrieval import rank_set
from trainer.ranking.search import Pairs, Share, best_of, search

CPU = torch.device("cpu")
SCORES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(SCORES, st.integers(0, 2**32 - 1)), min_size=2, max_size=20))
def test_keys_order_scores_and_then_numbers(pairs):
    scores, numbers = (torch.tensor(side, dtype=kind) for side, kind in zip(zip(*pairs), (torch.float32, torch.int64)))
    keys = pack(scores, numbers)
    assert (keys > NOTHING).all()
    known = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    assert torch.equal(scores_of(keys), known) and torch.equal(numbers_of(keys), numbers)
    order = sorted(range(len(pairs)), key=lambda i: (-known[i].item(), numbers[i].item()))
    assert torch.equal(keys.sort(descending=True).values, keys[order])


def lattice(rng, count: int, d: int) -> torch.Tensor:
    """Vectors of small whole numbers: many equal scores."""
    return torch.from_numpy(rng.integers(-2, 3, (count, d)).astype(np.float32))


def expected(queries, documents, numbers, depth, excluded=()):
    """A full sort in plain Python."""
    scores = (queries.double() @ documents.double().T).float().tolist()
    rows = []
    for query, row in enumerate(scores):
        found = [(-s, n) for s, n in zip(row, numbers.tolist()) if (query, n) not in excluded]
        rows.append([(n, -s) for s, n in sorted(found)[:depth]])
    return rows


def as_lists(keys: torch.Tensor) -> list:
    rows = ([key for key in row if key != NOTHING] for row in keys)
    return [[(numbers_of(k).item(), scores_of(k).item()) for k in row] for row in rows]


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 40), st.integers(0, 60), st.booleans())
def test_the_merged_shares_of_any_number_of_ranks_are_a_full_sort(seed, ranks, depth, count, ties):
    rng = np.random.default_rng(seed)
    d, asked = 5, 7
    queries = lattice(rng, asked, d) if ties else torch.from_numpy(rng.standard_normal((asked, d)).astype(np.float32))
    documents = lattice(rng, count, d) if ties else torch.from_numpy(rng.standard_normal((count, d)).astype(np.float32))
    numbers = torch.from_numpy(rng.permutation(count))
    pairs = {(int(rng.integers(asked)), int(rng.integers(max(1, count)))) for _ in range(10)}
    excluded = Pairs(*(torch.tensor(side) for side in zip(*pairs)))
    of_ranks = torch.from_numpy(rng.integers(0, ranks, count))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(searching, "TILE", d * int(rng.integers(1, 30)))
        patched.setattr(searching, "QUERIES", int(rng.integers(1, 9)))
        patched.setattr(searching, "SPARSE", int(rng.choice([1, 4, 32])))
        parts = [
            best_of(queries, Share(documents[of_ranks == rank], numbers[of_ranks == rank]), depth, CPU, excluded)
            for rank in range(ranks)
        ]
    found = as_lists(merge(torch.cat(parts, dim=1), depth))
    assert found == expected(queries, documents, numbers, depth, pairs)


def test_a_near_tie_that_float32_gets_wrong_is_decided_by_the_exact_scores(monkeypatch):
    """Scores that differ by less than a product in float32 is off by: the filter must keep what the sums decide."""
    rng = np.random.default_rng(2)
    queries = torch.from_numpy(rng.standard_normal((8, 384)).astype(np.float32))
    documents = torch.from_numpy(rng.standard_normal(384).astype(np.float32)).repeat(600, 1)
    documents += torch.from_numpy(1e-7 * rng.standard_normal((600, 384))).float()
    share = Share(documents, torch.arange(600))
    monkeypatch.setattr(searching, "TILE", 384 * 50)
    monkeypatch.setattr(searching, "SPARSE", 1)
    assert as_lists(best_of(queries, share, 20, CPU)) == expected(queries, documents, share.numbers, 20)


def test_one_process_searches_in_blocks_of_queries():
    rng = np.random.default_rng(0)
    queries, documents = lattice(rng, 600, 4), lattice(rng, 30, 4)
    share = Share(documents, torch.arange(30))
    blocks = list(search(World(), queries, share, 9, CPU))
    assert [first for first, _ in blocks] == [0, 256, 512]
    assert as_lists(torch.cat([keys for _, keys in blocks])) == expected(queries, documents, share.numbers, 9)


def test_a_score_does_not_depend_on_the_tile(monkeypatch):
    rng = np.random.default_rng(1)
    queries, documents = (torch.from_numpy(rng.standard_normal((n, 384)).astype(np.float32)) for n in (9, 400))
    documents[200:] = documents[:200]  # and equal vectors have equal scores
    share = Share(documents, torch.arange(400))
    whole = best_of(queries, share, 50, CPU)
    for tile, sparse in ((1, 32), (7, 1), (64, 1), (64, 32), (64, 10**9)):
        monkeypatch.setattr(searching, "TILE", 384 * tile)
        monkeypatch.setattr(searching, "SPARSE", sparse)
        assert torch.equal(best_of(queries, share, 50, CPU), whole)
    numbers = numbers_of(whole)
    assert torch.equal(numbers[:, 1::2], numbers[:, ::2] + 200), "equal documents side by side, the lower number first"


def test_ties_of_a_set_go_by_document_id_as_trec_eval_has_them():
    ids = ["b", "é", "a", "c", "B"]
    data = RetrievalSet("s", ids, ids, ["q"], ["q"], {"q": {"a": 1}})
    (run,) = rank_set(World(), torch.ones(1, 2), torch.ones(5, 2), torch.arange(5), data, CPU, 4)
    assert list(run["q"]) == ["é", "c", "b", "a"]
