"""Search among quantised vectors equals a plain statement of it; the codes are sentence-transformers'."""

import numpy as np
import pytest

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.evaluation import quantised
from trainer.evaluation.quantised import QUANTISED, int8_codes, rank_quantised, signs


def vectors(rows, size, seed):
    made = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def a_set(documents, queries, same_ids=False):
    """Ids whose order is not that of the rows."""
    docs = [f"d{(7 * i) % documents}" for i in range(documents)]
    ids = docs[:queries] if same_ids else [f"q{i}" for i in range(queries)]
    return RetrievalSet("s", docs, docs, ids, ids, {}, ignore_identical_ids=same_ids)


def plain_statement(queries, documents, kind):
    """Returns (first-pass scores, scores of the query's floats with the documents' codes), one number at a time."""
    size = documents.shape[1]
    first, floats = np.zeros((len(queries), len(documents))), np.zeros((len(queries), len(documents)))
    low, high = documents.min(0), documents.max(0)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            for k in range(size):
                if kind == "binary":
                    first[i, j] -= (query[k] > 0) != (document[k] > 0)  # Hamming distance, nearest first
                    floats[i, j] += query[k] * (1 if document[k] > 0 else -1)
                    continue
                step = (high[k] - low[k]) / np.float32(255)
                step = step if step else np.float32(1)
                codes = [min(255, max(0, int(np.floor((x[k] - low[k]) / step)))) - 128 for x in (query, document)]
                first[i, j] += codes[0] * codes[1]
                floats[i, j] += query[k] * ((codes[1] + 128) * step + low[k])
    return first, floats


def ordered(ids, scores):
    return [doc for _, doc in sorted(zip(scores.tolist(), ids), reverse=True)]


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("same_ids", [False, True])
def test_rankings_equal_the_plain_statement(kind, same_ids, monkeypatch):
    monkeypatch.setattr(quantised, "RESCORED", 6)
    monkeypatch.setattr(quantised, "DEPTH", 15)
    monkeypatch.setattr(quantised, "_BLOCK", 60)  # three queries at once
    queries, documents = vectors(7, 13, 1), vectors(20, 13, 2)
    documents[:, 4] = 0.25  # a dimension that is the same in all documents
    documents[3] = documents[5]  # equal documents: ties
    data = a_set(20, 7, same_ids)
    plain, rescored = rank_quantised(queries, documents, data, kind)
    first, floats = plain_statement(queries, documents, kind)
    ties = 0
    for row, query in enumerate(data.query_ids):
        order = [doc for doc in ordered(data.doc_ids, first[row]) if not (same_ids and doc == query)][:15]
        assert ranked(plain[query]) == order
        ties += len({*first[row].tolist()}) < 20
        score_of = dict(zip(data.doc_ids, floats[row].round(5)))
        again = sorted(order[:6], key=lambda doc: (score_of[doc], doc), reverse=True)
        assert [score_of[doc] for doc in ranked(rescored[query])[:6]] == pytest.approx([score_of[d] for d in again])
        assert ranked(rescored[query])[6:] == order[6:]
    assert ties, "a case with ties"


def ranked(scores):
    assert len({*scores.values()}) == len(scores), "no ties are left to trec_eval"
    return sorted(scores, key=scores.get, reverse=True)


def test_rescoring_changes_the_order():
    queries, documents = vectors(30, 16, 3), vectors(200, 16, 4)
    data = a_set(200, 30)
    for kind in QUANTISED:
        plain, rescored = rank_quantised(queries, documents, data, kind)
        exact = queries @ documents.T
        hits = [
            np.mean([data.doc_ids[exact[i].argmax()] == ranked(run[q])[0] for i, q in enumerate(data.query_ids)])
            for run in (plain, rescored)
        ]
        assert hits[1] > hits[0], kind


def test_codes_equal_those_of_sentence_transformers():
    theirs = pytest.importorskip("sentence_transformers.util.quantization").quantize_embeddings
    queries, documents = vectors(9, 20, 5), vectors(150, 20, 6)
    documents[:, 2] = 0.5
    ranges = np.vstack([documents.min(0), documents.max(0)])
    for side in (queries, documents):
        differences = np.abs(int8_codes(side, documents) - theirs(side, precision="int8", ranges=ranges))
        assert differences.max() <= 1 and (differences == 0).mean() > 0.99  # a number may lie on an edge
        bits = np.unpackbits(theirs(side, precision="ubinary"), axis=1)[:, :20]
        assert ((signs(side) > 0) == bits.astype(bool)).all()


def test_the_products_of_long_int8_codes_are_exact():
    """1,500 products of 127 x 127 pass 2**24, where float32 rounds to even numbers: two documents one apart."""
    size = 1500
    documents = np.ones((3, size), np.float32)
    documents[2] = -1.0
    documents[1, 0] -= 2 / 255 * 1.5  # one code less in one dimension
    queries = np.ones((1, size), np.float32)
    data = RetrievalSet("s", ["b", "c", "a"], ["t"] * 3, ["q"], ["t"], {})
    plain, _ = rank_quantised(queries, documents, data, "int8")
    assert ranked(plain["q"]) == ["b", "c", "a"], "c would come first in a tie"


def test_searches_equal_those_of_sentence_transformers():
    """All documents are candidates of the rescoring: ties of the first pass choose none of them."""
    pytest.importorskip("faiss")
    theirs = pytest.importorskip("sentence_transformers.util.quantization")
    queries, documents = vectors(8, 20, 7), vectors(50, 20, 8)
    data = a_set(50, 8)
    ranges = np.vstack([documents.min(0), documents.max(0)])
    for kind, precision in (("int8", "uint8"), ("binary", "ubinary")):
        codes = theirs.quantize_embeddings(documents, precision=precision, ranges=ranges)
        found, _ = theirs.semantic_search_faiss(
            queries, codes, corpus_precision=precision, top_k=10, ranges=ranges, rescore=True, rescore_multiplier=5
        )
        plain, rescored = rank_quantised(queries, documents, data, kind)
        for row, query in enumerate(data.query_ids):
            exact = {data.doc_ids[hit["corpus_id"]]: hit["score"] for hit in found[row]}
            gaps = np.diff(sorted(exact.values()))
            assert gaps.min() > 0, "no two scores are equal"
            assert ranked(rescored[query])[:10] == list(exact) or gaps.min() < 1e-5
        if kind == "binary":
            asked = theirs.quantize_embeddings(queries, precision="ubinary")
            found, _ = theirs.semantic_search_faiss(asked, codes, corpus_precision="ubinary", top_k=50, rescore=False)
            for row, query in enumerate(data.query_ids):
                distance = {data.doc_ids[hit["corpus_id"]]: hit["score"] for hit in found[row]}
                assert [distance[doc] for doc in ranked(plain[query])] == sorted(distance.values())
