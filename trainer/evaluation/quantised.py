"""Search among quantised vectors. No torch.

- int8: 256 steps between the smallest and the largest number of every dimension among the documents, as
  quantize_embeddings of sentence-transformers has them; two codes are compared by their inner product.
- binary: the signs; two codes are compared by their Hamming distance.
- Rescored: the first RESCORED documents are ordered anew by the inner product of the query's own floats and the
  document's code, an int8 code turned back into numbers. The others follow in their first order.
"""

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.inference.metrics import DEPTH

QUANTISED = ("int8", "binary")
RESCORED = 100  # documents of every query
_EXACT = 1024  # dimensions up to which float32 sums products of two int8 codes exactly: 1024 x 2**7 x 2**7 = 2**24
_BLOCK = 2**24  # scores at once

Run = dict[str, dict[str, float]]  # query id -> document id -> score, which is minus the rank


def int8_codes(vectors: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Returns whole numbers from -128 to 127, (n, d) float32. documents: whose numbers set the ranges."""
    low, step = _ranges(documents)
    return np.clip(np.floor((vectors - low) / step), 0, 255) - 128


def _ranges(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest number and the width of a step of every dimension, (d,) each."""
    low, high = documents.min(axis=0), documents.max(axis=0)
    step = (high - low) / 255
    return low, np.where(step == 0, np.ones_like(step), step)


def signs(vectors: np.ndarray) -> np.ndarray:
    """Returns 1 for numbers above 0 and -1 for others, (n, d) float32. The inner product of two rows is d less twice
    their Hamming distance."""
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def rank_quantised(queries: np.ndarray, documents: np.ndarray, data: RetrievalSet, kind: str) -> tuple[Run, Run]:
    """Returns the rankings by the codes alone, and rescored. queries (q, d), documents (n, d); kind: of QUANTISED."""
    if kind == "int8":
        wide = np.float32 if documents.shape[1] <= _EXACT else np.float64
        codes = int8_codes(documents, documents).astype(wide)
        asked, (low, step) = int8_codes(queries, documents).astype(wide), _ranges(documents)
    else:
        codes, asked = signs(documents), signs(queries)
        low, step = None, None
    place = _places(data.doc_ids)
    plain: Run = {}
    rescored: Run = {}
    ignored = data.ignored_documents()
    rows = max(1, _BLOCK // len(documents))
    for start in range(0, len(queries), rows):
        scores = (asked[start : start + rows] @ codes.T).astype(np.int64)
        for row, found in enumerate(_first_documents(scores, place)):
            number = start + row
            order = found[found != ignored[number]][:DEPTH] if number in ignored else found[:DEPTH]
            best = codes[order[:RESCORED]]
            best = best if low is None else (best + 128) * step + low
            again = np.lexsort((-place[order[:RESCORED]], -(best @ queries[number])))
            for run, ranked in ((plain, order), (rescored, np.concatenate([order[again], order[RESCORED:]]))):
                run[data.query_ids[number]] = {data.doc_ids[doc]: -float(rank) for rank, doc in enumerate(ranked, 1)}
    return plain, rescored


def _places(doc_ids: list[str]) -> np.ndarray:
    """Returns the place of every id in their ascending order, (n,) int64: of equal scores the later id comes first, as
    trec_eval has it."""
    places = np.empty(len(doc_ids), np.int64)
    places[sorted(range(len(doc_ids)), key=doc_ids.__getitem__)] = np.arange(len(doc_ids))
    return places


def _first_documents(scores: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Returns the best DEPTH documents of every query and one more, best first, (q, DEPTH + 1). scores: (q, n)."""
    keys = scores * len(place) + place  # no two are equal
    keep = min(DEPTH + 1, len(place))
    best = np.argpartition(-keys, keep - 1, axis=1)[:, :keep]
    order = np.argsort(-np.take_along_axis(keys, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)
