"""The hard negatives of a row that an epoch trains on: a pure function, like the plan's batches. No torch."""

import numpy as np

from data_prep.texts.splitmix import GOLDEN_GAMMA, splitmix
from trainer.planner.permutation import number_of


def drawn_negatives(
    row: int, count: int, most: int | None, epoch: int = 0, seed: int = 0, sampling: str = "first"
) -> list[int]:
    """Returns the indices, ascending, of the row's `count` hard negatives that an epoch takes, `most` of them at most.

    first: the first ones, in every epoch. random: the row's negatives have an order drawn from (seed, row), and
    every epoch takes the next ones, in a circle. So no negative comes again before all others have come.
    """
    if most is None or count <= most:
        return list(range(count))
    if sampling == "first":
        return list(range(most))
    states = number_of(f"negatives|{seed}|{row}") + np.arange(count, dtype=np.uint64) * GOLDEN_GAMMA
    order = np.argsort(splitmix(states), kind="stable")
    return sorted(order[(epoch * most + np.arange(most)) % count].tolist())
