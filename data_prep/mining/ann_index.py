"""Approximate nearest neighbours: the one module that loads faiss.

An inverted file (Sivic and Zisserman 2003; faiss IVF with 16-bit floats): embeddings belong to cells around centres,
and a query looks into the cells nearest to it.
"""

from collections.abc import Callable

import numpy as np

from data_prep.common.console import say, track
from data_prep.common.errors import Failed

ADDED_AT_ONCE = 16_384  # embeddings
TRAINED_PER_CELL = 64  # embeddings
RECALL = 0.98  # share of the exact candidates that a sample of queries must return


class ApproximateIndex:
    """An index for search by inner product over `size` embeddings.

    embeddings(first, last) returns (last - first, d) float32. Memory: 2 d + 8 bytes per embedding; while it is built,
    4 d bytes more for each of 256 sqrt(size) embeddings.
    """

    def __init__(self, embeddings: Callable[[int, int], np.ndarray], size: int, d: int):
        try:
            import faiss
        except ImportError:
            raise Failed(
                f"{size:,} texts are searched approximately, which needs faiss: pip install 'embedfleet[ann]'; "
                "or search exactly with a higher --approximate-above"
            ) from None
        self.cells = max(1, min(int(4 * size**0.5), size // TRAINED_PER_CELL))
        self.index = faiss.index_factory(d, f"IVF{self.cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        drawn = np.random.default_rng(0).choice(size, min(size, TRAINED_PER_CELL * self.cells), replace=False)
        say(f"training the index on {len(drawn):,} embeddings")
        self.index.train(np.concatenate([embeddings(i, i + 1) for i in np.sort(drawn)]))
        for first in track(range(0, size, ADDED_AT_ONCE), f"building the index (blocks of {ADDED_AT_ONCE:,})"):
            self.index.add(np.ascontiguousarray(embeddings(first, min(size, first + ADDED_AT_ONCE))))

    def tune(self, queries: np.ndarray, expected: list[np.ndarray], count: int) -> None:
        """Sets the number of cells per query so that `count` results contain RECALL of the expected ones."""
        probes = 8
        while True:
            self.index.nprobe = min(probes, self.cells)
            results = self.search(queries, count)
            hits = sum(len(set(a.tolist()).intersection(b.tolist())) for a, b in zip(results, expected))
            recall = hits / max(1, sum(map(len, expected)))
            if recall >= RECALL or probes >= self.cells:
                break
            probes *= 2
        say(
            f"approximate search: {self.index.nprobe:,} of {self.cells:,} cells a query, recall {recall:.3f} of what "
            f"exact search finds for {len(queries)} of the queries"
        )

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Returns the numbers of about the `count` nearest embeddings. queries: (q, d) float32."""
        _, numbers = self.index.search(queries, count)
        return [row[row >= 0] for row in numbers]
