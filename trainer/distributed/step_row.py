"""The row of integers that each rank exchanges at the start of a step. Never imports torch."""

from collections.abc import Iterable
from typing import NamedTuple


class Wishes(NamedTuple):
    """Requests of a rank that take effect on all ranks after the same step."""

    stop: int = 0  # signal number, 0: none
    save: int = 0  # 1: a checkpoint is due
    evaluate: int = 0  # 1: an evaluation is due

    @classmethod
    def of_all(cls, rows: "Iterable[StepRow]") -> "Wishes":
        """Returns the largest of all ranks, so that one rank's request is enough."""
        return cls(*map(max, zip(*((row.stop, row.save, row.evaluate) for row in rows))))


NO_WISHES = Wishes()


class StepRow(NamedTuple):
    """One rank's numbers of a step. Its fields are the columns of the exchange."""

    rows: int
    documents: int
    chunks: int  # forward passes
    kept: int  # chunks that keep their activations
    stop: int  # see Wishes
    save: int  # see Wishes
    evaluate: int  # see Wishes
