"""Approximate nearest neighbours: the one module that loads faiss.

An inverted file (Sivic and Zisserman 2003; faiss IVF with 16-bit floats): embeddings stand in cells around centres, and
a query looks into the cells nearest to it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from data_prep.common.console import say, track
from data_prep.common.errors import Failed

if TYPE_CHECKING:
    import numpy as np

ADDED_AT_ONCE = 16_384
TRAINED_PER_CELL = 64
RECALL = 0.98  # of the candidates that exact search finds, for a sample of queries


class ApproximateIndex:
    """The embeddings(first, last) of `size` places, (last - first, d) float32 each, for search by inner product.

    Memory: 2 d + 8 bytes per embedding, and 256 sqrt(size) of them, 4 d bytes each, while it is built.
    """

    def __init__(self, embeddings: "Callable[[int, int], np.ndarray]", size: int, d: int):
        import numpy as np

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

    def tune(self, queries: "np.ndarray", expected: "list[np.ndarray]", count: int) -> None:
        """Makes searches look into as many cells as it takes to find, among `count` places, RECALL of the expected."""
        probes = 8
        while True:
            self.index.nprobe = min(probes, self.cells)
            found = self.search(queries, count)
            hits = sum(len(set(a.tolist()).intersection(b.tolist())) for a, b in zip(found, expected))
            recall = hits / max(1, sum(map(len, expected)))
            if recall >= RECALL or probes >= self.cells:
                break
            probes *= 2
        say(
            f"approximate search: {self.index.nprobe:,} of {self.cells:,} cells a query, recall {recall:.3f} of what "
            f"exact search finds for {len(queries)} of the queries"
        )

    def search(self, queries: "np.ndarray", count: int) -> "list[np.ndarray]":
        """For each of (q, d) float32 queries the places of about the `count` nearest."""
        _, places = self.index.search(queries, count)
        return [row[row >= 0] for row in places]
