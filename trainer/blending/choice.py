"""Choosing a share on one half of the queries, and reporting on the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.blending.halves import Halves
from trainer.blending.measured import PerQuery
from trainer.evaluation.compare import compare, means

METRIC = "nDCG@10"


@dataclass(frozen=True)
class Side:
    """A retrieval set with the metrics of every share on it."""

    data: RetrievalSet
    halves: Halves
    by_share: dict[float, PerQuery]

    def mean(self, share: float, half: int) -> float:
        """Mean of METRIC over the half that chooses (0) or reports (1)."""
        return float(np.mean([self.by_share[share][query][METRIC] for query in self.halves[half]]))

    def reported(self, share: float) -> PerQuery:
        """Returns the metrics of a share on the half that reports."""
        return {query: self.by_share[share][query] for query in self.halves[1]}


def choose(domain: Side, general: Side | None, most_lost: float) -> float:
    """Returns the share with the best mean on the domain's choosing half, among those that lose at most `most_lost` of
    the base's mean on the general set's choosing half. Of equal ones the smallest, which is nearest to the base."""
    allowed = [share for share in domain.by_share if is_allowed(general, share, most_lost)]
    return max(allowed, key=lambda share: (domain.mean(share, 0), -share))


def is_allowed(general: Side | None, share: float, most_lost: float) -> bool:
    # rounding must not forbid a loss of exactly the bound
    return general is None or general.mean(0.0, 0) - general.mean(share, 0) <= most_lost + 1e-12


def report(domain: Side, general: Side | None, chosen: float, most_lost: float) -> dict:
    """Returns the table of shares, and the chosen one against base and tuned model on the half that reports."""
    rows = []
    for share in sorted(domain.by_share):
        row = {"share": share, "allowed": is_allowed(general, share, most_lost), "domain": _row(domain, share)}
        rows.append(row | ({"general": _row(general, share)} if general else {}))
    return {
        "metric": METRIC,
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
