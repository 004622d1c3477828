"""Exact search by inner product over the documents of all ranks.

- Each rank scores its share of the documents against all queries, a tile of documents at a time, and keeps the best
  `depth` of each query. Ranks then exchange those, and everyone merges them.
- Scores are sums of float64 products, rounded to float32 once. So a score depends neither on the tile that a document
  is in nor on the number of ranks, and equal vectors have equal scores: results and their order are the same for any
  number of ranks.
- Where few documents of a tile can be among the best, a product in float32 tells which, and they alone are summed in
  float64.
- Memory of a rank beside its share: 8 bytes for each query and place of `depth`, and about 200 MB for a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed.collectives import World
from trainer.distributed.device import rounds_products
from trainer.ranking.keys import NOTHING, merge, pack, scores_of

TILE = 2**22  # numbers of the documents that are scored at a time
QUERIES = 256  # scored at a time; and merged over ranks
EPSILON = 2.0**-23  # of float32
PAIRS = 2**20  # numbers of the documents that are scored one by one at a time
SPARSE = 128  # one of so many documents, at most, is scored by itself: it costs many times its part of a tile's product


@dataclass(frozen=True)
class Share:
    """The documents of one rank."""

    vectors: Tensor  # (n, d), of any float type, on the CPU
    numbers: Tensor  # (n,) int64, 0 … 2**32 - 1, each on one rank only; of equal scores the lower number comes first


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a document that it must not retrieve; documents of other ranks are skipped."""

    queries: Tensor  # (pairs,) int64 row of each query
    numbers: Tensor  # (pairs,) int64


def search(
    world: World, queries: Tensor, share: Share, depth: int, device: torch.device, excluded: Pairs | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yields (first query, keys) of QUERIES queries at a time, the same on every rank. Collective.

    keys: (queries, min(depth, documents of all ranks)) int64 on the device, best first; NOTHING where a query has fewer
    documents. queries: (q, d), the same on every rank. device: where scores are computed; an Apple GPU has no float64,
    and the CPU takes its place.
    """
    device = torch.device("cpu") if device.type == "mps" else device
    depth = min(depth, int(world.gather_ints([len(share.numbers)]).sum()))
    best = best_of(queries, share, depth, device, excluded)
    for first in range(0, len(queries), QUERIES):
        block = best[first : first + QUERIES]
        of_ranks = world.gather_rows(block, [len(block)] * world.size).view(world.size, len(block), depth)
        yield first, merge(of_ranks.transpose(0, 1).reshape(len(block), -1), depth)


def best_of(queries: Tensor, share: Share, depth: int, device: torch.device, excluded: Pairs | None = None) -> Tensor:
    """Returns the keys of the best `depth` documents of a share for each query: (q, depth) int64, as merge() does."""
    best = torch.full((len(queries), depth), NOTHING, device=device)
    width = max(1, TILE // max(1, share.vectors.shape[1]))
    left_out = _Excluded(excluded, share, width, len(queries)) if excluded else None
    for number, first in enumerate(range(0, len(share.numbers), width)):
        tile = _Tile(share.vectors[first : first + width].to(device), share.numbers[first : first + width].to(device))
        for row in range(0, len(queries), QUERIES):
            asked, kept = queries[row : row + QUERIES].to(device), best[row : row + QUERIES]
            out = left_out.of(number, row) if left_out else None
            keys = tile.near(asked, kept[:, -1], out)
            _take(kept, tile.all(asked, out) if keys is None else keys)
    return best


class _Tile:
    """Some documents, and the keys of those that some queries may find among them."""

    def __init__(self, vectors: Tensor, numbers: Tensor):
        self.vectors, self.numbers = vectors, numbers
        self._exact: Tensor | None = None

    def all(self, queries: Tensor, out: tuple[Tensor, Tensor] | None) -> Tensor:
        """(queries, documents) keys. out: rows and columns of pairs to leave out."""
        if self._exact is None:
            self._exact = self.vectors.double()
        keys = pack((queries.double() @ self._exact.T).float(), self.numbers)
        if out:
            keys[out] = NOTHING
        return keys

    def near(self, queries: Tensor, worst: Tensor, out: tuple[Tensor, Tensor] | None) -> Tensor | None:
        """Returns the keys of documents that may be better than `worst`, (queries,) keys.

        Their shape is (queries, most of one query), filled up with NOTHING. None if they are many or cannot be bounded.

        A product in float32 takes half the time of one in float64. It is off by at most (d + 2) rounding errors of the
        product of the lengths; what is within that of the worst is scored exactly.
        """
        if self.vectors.dtype != torch.float32 or rounds_products(self.vectors.device) or (worst == NOTHING).any():
            return None
        off = (self.vectors.shape[1] + 2) * EPSILON * queries.norm(dim=1) * self.vectors.norm(dim=1).max()
        if not off.isfinite().all():
            return None
        near = queries.float() @ self.vectors.T >= (scores_of(worst) - off)[:, None]
        if out:
            near[out] = False
        counts = near.sum(dim=1)
        if SPARSE * int(counts.sum()) > near.numel():
            return None
        rows, columns = near.nonzero(as_tuple=True)
        some = max(1, PAIRS // self.vectors.shape[1])
        parts = zip(rows.split(some), columns.split(some))
        scores = torch.cat([(queries[r].double() * self.vectors[c].double()).sum(dim=1) for r, c in parts])
        return _side_by_side(rows, counts, pack(scores.float(), self.numbers[columns]))


def _side_by_side(rows: Tensor, counts: Tensor, keys: Tensor) -> Tensor:
    """Returns keys that stand end to end as (rows, most of one row), filled up with NOTHING. rows: of each key,
    ascending. counts: keys of each row."""
    before = (counts.cumsum(dim=0) - counts).repeat_interleave(counts)
    table = keys.new_full((len(counts), int(counts.max())), NOTHING)
    table[rows, torch.arange(len(rows), device=keys.device) - before] = keys
    return table


def _take(best: Tensor, keys: Tensor) -> None:
    """Merges the keys of a tile, (queries, n), into the best so far, (queries, depth), in place."""
    better = keys > best[:, -1:]
    counts = better.sum(dim=1)
    if 4 * int(counts.max()) < keys.shape[1]:  # few, once some tiles are done: only they are sorted
        keys = _side_by_side(better.nonzero(as_tuple=True)[0], counts, keys[better])
    best.copy_(merge(torch.cat([best, keys], dim=1), best.shape[1]))


class _Excluded:
    """Pairs that are left out, by the tile and the block of queries that they are in."""

    def __init__(self, pairs: Pairs, share: Share, tile: int, queries: int):
        order = share.numbers.argsort()
        ordered = share.numbers[order]
        at = torch.searchsorted(ordered, pairs.numbers).clamp(max=max(0, len(ordered) - 1))
        here = ordered[at] == pairs.numbers if len(ordered) else torch.zeros(len(at), dtype=torch.bool)
        position, query = order[at[here]], pairs.queries[here]
        place, by_place = (position // tile * queries + query).sort()  # of a tile, then of a query
        self.place, self.query, self.column = place, query[by_place], position[by_place] % tile
        self.queries = queries

    def of(self, tile: int, row: int) -> tuple[Tensor, Tensor]:
        """Returns the rows and columns, within a block of queries and a tile, of pairs to leave out."""
        begin = tile * self.queries + row
        end = tile * self.queries + min(self.queries, row + QUERIES)
        first, last = torch.searchsorted(self.place, torch.tensor([begin, end])).tolist()
        return self.query[first:last] - row, self.column[first:last]
