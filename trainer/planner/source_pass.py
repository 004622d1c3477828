"""One pass over the rows of a source, in batches without rows that share a text. No torch.

- The order of a pass is a keyed permutation, computed at every access and never stored.
- Batch number n is the run of batch_size positions from n * batch_size on.
- Rows that share a query, a positive or a document would be each other's false negatives in one batch.
- The few that the permutation puts together are swapped with rows elsewhere. These swaps are all that a pass stores.
- A key that occurs in more rows than there are batches stays. Its rows are counted here, and the loss masks them.
"""

import numpy as np

from data_prep.shards.shared_keys import Shared, SourceRows
from data_prep.texts.splitmix import mix
from trainer.planner.permutation import Permutation, number_of

BLOCK = 2**16  # pairs (row, shared key) examined together: about 10 MB of working memory
ROUNDS = 200  # of moving rows to other positions; the loss masks what is left
IDLE_ROUNDS = 20  # in a row that moved no row: the rest will hardly move
WORK = 4  # pairs examined while rows move, at most, as a multiple of all pairs (or of BLOCK, if more)


class Pass:
    """The batches of one pass."""

    def __init__(self, source: SourceRows, batch_size: int, batches: int, key: str, apart: bool):
        """batches: of the pass; rows beyond them are left out. apart: rows that share a key are kept apart."""
        self.source, self.batch_size = source, batch_size
        self._order = Arrangement(len(source.rows), key)
        self._meeting = np.empty(0, np.int64)  # sorted positions, see _meeting_places
        if apart and len(source.shared):
            keys = keep_apart(self._order, source.shared, batch_size, key)
            self._meeting = _meeting_places(self._order, source.shared, keys, batch_size)
            self._meeting = self._meeting[self._meeting < batches * batch_size]

    def batch(self, number: int) -> np.ndarray:
        """Returns the row ids of a batch, int64."""
        start = number * self.batch_size
        return self.source.ids(self._order.run(start, min(start + self.batch_size, self._order.n)))

    def meeting(self, first: int, stop: int) -> int:
        """Counts the rows of batches first..stop-1 that share a key with an earlier row of their batch."""
        low, high = self._meeting.searchsorted([first * self.batch_size, stop * self.batch_size])
        return int(high - low)


class Arrangement:
    """An order of 0..n-1: a permutation and a few exceptions to it. Memory is proportional to the exceptions."""

    def __init__(self, n: int, key: str):
        self.n = n
        self._permutation = Permutation(n, key)
        self._by_place = self._by_row = np.empty((2, 0), np.int64)  # (place, row) sorted by place; (row, place) by row

    def row_at(self, places: np.ndarray) -> np.ndarray:
        return _replaced(self._permutation.at(places), places, *self._by_place)

    def place_of(self, rows: np.ndarray) -> np.ndarray:
        return _replaced(self._permutation.place_of(rows), rows, *self._by_row)

    def run(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows at places start..stop-1."""
        rows = self._permutation.at(np.arange(start, stop))
        low, high = self._by_place[0].searchsorted([start, stop])
        rows[self._by_place[0, low:high] - start] = self._by_place[1, low:high]
        return rows

    def swap(self, first: np.ndarray, second: np.ndarray) -> None:
        """Exchanges the rows at two lists of places, all distinct."""
        places = np.concatenate((first, second))
        rows = np.concatenate((self.row_at(second), self.row_at(first)))
        kept = self._by_place[:, ~np.isin(self._by_place[0], places)]
        moved = np.concatenate((kept, [places, rows]), axis=1)
        self._by_place = moved[:, moved[0].argsort()]
        self._by_row = moved[::-1, moved[1].argsort()]


def _replaced(values: np.ndarray, wanted: np.ndarray, at: np.ndarray, replacement: np.ndarray) -> np.ndarray:
    """Returns values, with replacement[i] wherever wanted is at[i]. at: sorted."""
    if not len(at):
        return values
    nearest = np.minimum(at.searchsorted(wanted), len(at) - 1)
    return np.where(at[nearest] == wanted, replacement[nearest], values)


def keep_apart(order: Arrangement, shared: Shared, batch_size: int, key: str) -> np.ndarray:
    """Moves rows until no batch (run of batch_size places) has a shared key twice, or further rounds are useless.

    Of the rows that meet, all but one try another random place. A swap is made only where neither of its rows then
    meets another, so the number of meetings only falls. Keys in every batch are skipped. Returns the keys that may
    still occur twice in a batch. Costs O(pairs) once, in blocks, then O(rows that share a key with rows that meet) per
    round.
    """
    keys = _clashing_keys(order, shared, batch_size)
    everywhere = [keys[:0]]  # its rows fit nowhere else, so it stays in every batch
    batches = -(-order.n // batch_size)
    budget, idle = WORK * max(len(shared.rows), BLOCK), 0
    for round_ in range(ROUNDS):
        salt = number_of(f"{key}|round {round_}")
        rows, number = shared.members(keys)
        again = _again(order.place_of(rows) // batch_size, number, mix(rows.astype(np.uint64) + salt))
        everywhere_now = np.bincount(number[~again], minlength=len(keys)) == batches
        everywhere.append(keys[everywhere_now])
        again &= ~everywhere_now[number]
        keys = keys[np.unique(number[again])]
        if not len(keys) or budget < 0 or idle == IDLE_ROUNDS:
            break
        moved, examined = _move(order, shared, np.unique(rows[again]), batch_size, salt)
        budget -= len(rows) + examined
        idle = 0 if moved else idle + 1
    return np.concatenate((*everywhere, keys))


def _clashing_keys(order: Arrangement, shared: Shared, batch_size: int) -> np.ndarray:
    """Returns the keys that occur twice in a batch, examining BLOCK pairs (or one key, if it has more) at a time."""
    clashing = [np.empty(0, np.int64)]
    first = 0
    while first < len(shared):
        stop = max(first + 1, int(shared.starts.searchsorted(shared.starts[first] + BLOCK, "right")) - 1)
        rows, number = shared.members(np.arange(first, stop))
        code = np.sort(number * (order.n // batch_size + 1) + order.place_of(rows) // batch_size)
        again = code[1:][code[1:] == code[:-1]]
        clashing.append(first + np.unique(again // (order.n // batch_size + 1)))
        first = stop
    return np.concatenate(clashing)


def _again(batch: np.ndarray, number: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(m,) bool: an element with the same batch and key number comes before this one in the order of rank."""
    code = batch * (int(number.max(initial=0)) + 1) + number
    order = np.lexsort((rank, code))
    again = np.zeros(len(code), bool)
    again[order[1:]] = code[order[1:]] == code[order[:-1]]
    return again


def _move(order: Arrangement, shared: Shared, movers: np.ndarray, batch_size: int, salt: np.uint64) -> tuple[int, int]:
    """Swaps movers with rows at random places where both then meet no other: (rows moved, pairs examined)."""
    targets = (mix(np.arange(len(movers), dtype=np.uint64) + mix(salt[None])) % np.uint64(order.n)).astype(np.int64)
    first = np.unique(targets, return_index=True)[1]
    displaced = order.row_at(targets[first])
    free = ~np.isin(displaced, movers)  # a swap of two movers would solve nothing
    movers, targets, displaced = movers[first][free], targets[first][free], displaced[free]
    places = order.place_of(movers)

    # Shared keys of a mover arrive in the batch of its target, those of the displaced row in the mover's batch.
    swap, key = shared.keys_of(movers)
    swap_back, key_back = shared.keys_of(displaced)
    arrivals = np.concatenate((targets[swap], places[swap_back]))
    swap = np.concatenate((swap, swap_back))
    keys, number = np.unique(np.concatenate((key, key_back)), return_inverse=True)
    arrival = arrivals // batch_size * len(keys) + number
    owners, owner_key = shared.members(keys)
    present = order.place_of(owners) // batch_size * len(keys) + owner_key
    alone = np.zeros(len(arrival), bool)
    alone[np.unique(arrival, return_index=True)[1]] = True  # of several that arrive, one may

    fits = np.ones(len(movers), bool)
    fits[swap[~alone | np.isin(arrival, present)]] = False
    order.swap(places[fits], targets[fits])
    return int(fits.sum()), len(owners)


def _meeting_places(order: Arrangement, shared: Shared, keys: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the sorted places of rows that share one of these keys with an earlier row of their batch."""
    rows, number = shared.members(keys)
    places = order.place_of(rows)
    return np.unique(places[_again(places // batch_size, number, places)])
