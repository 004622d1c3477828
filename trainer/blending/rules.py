"""The rules by which a share is chosen. No torch: the command line reads its defaults here."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.common.files import check


@dataclass(frozen=True)
class Rules:
    """The numbers of the choice. Raises BadInput for those that cannot be."""

    shares: Sequence[float] = tuple(tenth / 10 for tenth in range(11))  # 0 and 1 are measured in any case
    most_lost: float = 0.005  # of nDCG@10 on the general set
    seed: int = 0  # of the halves of the queries

    def __post_init__(self):
        problems = [f"--shares: {s} is no share from 0 (base) to 1 (tuned)" for s in self.shares if not 0 <= s <= 1]
        if not 0 <= self.most_lost <= 1:
            problems.append(f"--most-lost: {self.most_lost} is no loss of nDCG@10 from 0 to 1")
        check(problems)

    @property
    def measured(self) -> list[float]:
        """The shares in the order of their measuring."""
        return [0.0, 1.0, *sorted({float(share) for share in self.shares} - {0.0, 1.0})]
