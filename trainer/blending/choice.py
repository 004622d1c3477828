"""Choosing a share on one half of the queries, and reporting on the other.

- A share is refused if it loses more on the general set than the bound, or if a smaller share is refused: forgetting
  grows with the share, and one lucky share above an unlucky one is noise.
- Few general queries hide a loss. Below MANY in the half that chooses, the lower end of the paired 95 % interval of the
  change must hold the bound; from there on the mean must.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.blending.halves import Halves
from trainer.blending.measured import PerQuery, key_of
from trainer.evaluation.compare import compare, means, paired_bootstrap

METRIC = "nDCG@10"
RULE = 2  # number of these rules: an output chosen by others is of another call
MANY = 400  # queries of the general set's choosing half from which its mean bounds the loss
LOSES, MAY_LOSE, ABOVE = "loses too much", "may lose too much", "a smaller share is refused"


@dataclass(frozen=True)
class Side:
    """A retrieval set with the metrics of every share on it."""

    data: RetrievalSet
    halves: Halves
    by_share: dict[float, PerQuery]
    metric: str = METRIC  # by which a share is chosen, or refused

    @cached_property
    def key(self) -> str:
        """The sha256 of the set."""
        return key_of(self.data)

    def values(self, share: float) -> dict[str, float]:
        """Returns the metric of every query."""
        return {query: found[self.metric] for query, found in self.by_share[share].items()}

    def mean(self, share: float, half: int) -> float:
        """Mean of the metric over the half that chooses (0) or reports (1)."""
        return float(np.mean([self.by_share[share][query][self.metric] for query in self.halves[half]]))

    def change(self, share: float) -> list[float]:
        """Returns the paired 95 % interval of the metric's change from the base, over the half that chooses."""
        sides = ([self.by_share[one][query][self.metric] for query in self.halves[0]] for one in (0.0, share))
        return list(paired_bootstrap(*map(np.array, sides)))

    def reported(self, share: float) -> PerQuery:
        """Returns the metrics of a share on the half that reports."""
        return {query: self.by_share[share][query] for query in self.halves[1]}


def choose(domain: Side, general: Side | None, most_lost: float) -> float:
    """Returns the share with the best mean on the domain's choosing half, among those that are not refused. Of equal
    ones the smallest, which is nearest to the base."""
    refused = refusals(general, list(domain.by_share), most_lost)
    allowed = [share for share in domain.by_share if not refused[share]]
    return max(allowed, key=lambda share: (domain.mean(share, 0), -share))


def refusals(general: Side | None, shares: Sequence[float], most_lost: float) -> dict[float, str | None]:
    """Returns share -> the reason that it is refused, None where it is allowed. most_lost: of the base's mean on the
    general set's choosing half. Share 0, the base, is always allowed."""
    reasons: dict[float, str | None] = dict.fromkeys(sorted(shares))
    if general is None:
        return reasons
    refused = False
    for share in reasons:
        reasons[share] = ABOVE if refused else _refusal(general, share, most_lost)
        refused = refused or reasons[share] is not None
    return reasons


def by_interval(general: Side) -> bool:
    """True if so few queries choose that the interval must hold the bound."""
    return len(general.halves[0]) < MANY


def _refusal(general: Side, share: float, most_lost: float) -> str | None:
    least = -most_lost - 1e-12  # rounding must not forbid a loss of exactly the bound
    if general.mean(share, 0) - general.mean(0.0, 0) < least:
        return LOSES
    return MAY_LOSE if by_interval(general) and general.change(share)[0] < least else None


def report(domain: Side, general: Side | None, chosen: float, most_lost: float) -> dict:
    """Returns the table of shares, and the chosen one against base and tuned model on the half that reports."""
    rows = []
    for share, reason in refusals(general, list(domain.by_share), most_lost).items():
        row = {"share": share, "refused": reason, "domain": _row(domain, share)}
        rows.append(row | ({"general": _row(general, share) | {"change_95": general.change(share)}} if general else {}))
    return {
        "metric": domain.metric,
        "chosen": chosen,
        "gain_kept": gain_kept([domain.mean(share, 1) for share in (0.0, chosen, 1.0)]),
        "domain": _against(domain, chosen),
        "general": _against(general, chosen) if general else None,
        "shares": rows,
    }


def gain_kept(base_chosen_tuned: Sequence[float]) -> float | None:
    """Returns the part of the tuned model's gain that the chosen share has; None where it gained nothing."""
    base, chosen, tuned = base_chosen_tuned
    return (chosen - base) / (tuned - base) if tuned > base else None


def _row(side: Side, share: float) -> dict:
    return {"chooses": side.mean(share, 0), "reports": side.mean(share, 1), "all": means(side.by_share[share])}


def _against(side: Side, chosen: float) -> dict:
    chosen_on_half = side.reported(chosen)
    return {
        "data": side.data.name,
        "queries_that_choose": len(side.halves[0]),
        "queries_that_report": len(side.halves[1]),
        "against_base": _compared("base", side.reported(0.0), chosen_on_half),
        "against_tuned": _compared("tuned", side.reported(1.0), chosen_on_half),
    }


def _compared(end: str, before: PerQuery, chosen: PerQuery) -> dict[str, dict]:
    """Returns metric -> the means of an end and of the chosen share, their difference and its 95 % interval."""
    return {
        name: {end: row["base"], "chosen": row["tuned"], **{key: row[key] for key in ("difference", "interval_95")}}
        for name, row in compare(before, chosen).items()
    }
