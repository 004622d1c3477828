"""Judges a run: compares its models with the one before training on the same queries, and picks the one for final/.

- The tuned model: the one whose metric was highest on the choosing queries (run_dir/queries.py).
- The model before training is preferred where it was higher on the choosing queries, or where the tuned one lies below
  it beyond the interval, on the reporting queries or on all.
- The verdict is of the tuned model, on the reporting queries.
- After a blend (watch.blend) the blended model takes the place of the tuned one in all of this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.sections import GENERAL, TRAIN_LOSS
from trainer.evaluation.compare import paired_bootstrap
from trainer.run_dir.queries import FOLDER, Halves, Values, mean_of, read_values, watched
from trainer.run_dir.verdict import BASE, BETTER, BLENDED, NO_DIFFERENCE, NOT_MEASURED, TRAINED, WORSE

FEWEST = 6  # queries: five that all change alike are no sign at the 5 % level (2 / 2 ** 5)
POWER = 1.96 + 0.84  # normal quantiles of 5 % on both sides, and of 80 % power


@dataclass(frozen=True)
class Model:
    """A model of the run."""

    step: int
    epoch: int
    kept: bool  # its weights can be written into final/; a model below the one before training need not be

    @property
    def facts(self) -> dict:
        return {"step": self.step, "epoch": self.epoch}


@dataclass(frozen=True)
class Blend:
    """The share between the model before training (0) and the best one (1) that watch.blend chose."""

    share: float
    values: Values  # the metric of its queries, on the watched set and data.general
    general: Sequence[str]  # queries of data.general that had no part in the choice


@dataclass(frozen=True)
class Case:
    """A run that is to be judged by the values in its folder queries/."""

    metric: str  # watch.metric
    set_name: str | None
    halves: Halves | None
    best: Model  # by the choosing queries
    last: Model
    unmeasured: str | None = None  # the reason that there can be no verdict
    blend: Blend | None = None


def compare_queries(before: Mapping[str, float], after: Mapping[str, float], queries: Sequence[str]) -> dict:
    """Compares the values of two models on the same queries.

    detectable: the difference that so many queries show in 80 % of the cases at the 5 % level, (1.96 + 0.84) * standard
    deviation of the differences / sqrt(queries); None below FEWEST.
    """
    base, tuned = (np.array([values[query] for query in queries]) for values in (before, after))
    low, high = paired_bootstrap(base, tuned)
    enough = len(base) >= FEWEST
    verdict = BETTER if low > 0 else WORSE if high < 0 else NO_DIFFERENCE
    return {
        "verdict": verdict if enough else NO_DIFFERENCE,
        "queries": len(base),
        "base": float(base.mean()),
        "tuned": float(tuned.mean()),
        "difference": float((tuned - base).mean()),
        "interval_95": [low, high],
        "detectable": float(POWER * np.std(tuned - base, ddof=1) / math.sqrt(len(base))) if enough else None,
    }


def judge(run_dir: Path, case: Case) -> dict:
    """Returns the facts of verdict.json: the verdict, what final/ is to hold, and the numbers behind both."""
    source, metric = watched(case.metric)
    values = {model.step: read_values(run_dir, model.step) for model in (START, case.best, case.last)}
    base, tuned, last = (values[model.step].get(source) for model in (START, case.best, case.last))
    best = case.blend.values[source] if case.blend else tuned
    general = _general(case, values) if source != GENERAL else {}
    unmeasured = case.unmeasured
    if not (base and best and base.keys() == best.keys()):
        unmeasured = unmeasured or f"not all values of single queries are in {FOLDER}/"
    if unmeasured:
        final = {"model": TRAINED, **case.best.facts} if case.best.kept else BASE_FACTS
        return {"verdict": NOT_MEASURED, "final": final, "why": unmeasured} | general
    by_loss = case.metric == TRAIN_LOSS  # no query chose
    choosing, reporting = ([query for query in half if query in base] for half in case.halves.sides)
    reporting = [*base] if by_loss else reporting
    change, over_all = (compare_queries(base, best, queries) for queries in (reporting, [*base]))
    lower = not by_loss and mean_of(best, choosing) < mean_of(base, choosing)
    keeps_base = lower or WORSE in (change["verdict"], over_all["verdict"])
    facts = {
        # of two halves that contradict each other, the one that chose has had its say
        "verdict": NO_DIFFERENCE if keeps_base and change["verdict"] == BETTER else change["verdict"],
        "final": BASE_FACTS if keeps_base else _final(case),
        "set": case.set_name,
        "metric": f"{source}/{metric}" if source else metric,
        "choosing_queries": 0 if by_loss else len(choosing),
        "same_queries": not by_loss and case.halves.same,
        "best": case.best.facts | change,
        "all_queries": over_all,
    }
    if case.blend:
        facts["blend"] = {"share": case.blend.share, "tuned": compare_queries(base, tuned, reporting)}
    if case.last.step != case.best.step and last and last.keys() == base.keys():
        facts["last"] = case.last.facts | compare_queries(base, last, reporting)
    return facts | general


START = Model(0, 0, kept=True)  # before training
BASE_FACTS = {"model": BASE, **START.facts}


def _final(case: Case) -> dict:
    """Returns what final/ is to hold, if it is not the model before training for its metric."""
    share = case.blend.share if case.blend else 1.0
    if share == 0.0:
        return BASE_FACTS
    if share == 1.0:
        return {"model": TRAINED, **case.best.facts}
    return {"model": BLENDED, "share": share, **case.best.facts}


def _general(case: Case, values: Mapping[int, Values]) -> dict:
    """Returns what the model has forgotten: its change on data.general, where that is measured. After a blend only of
    the queries that had no part in the choice."""
    base, tuned = values[0].get(GENERAL), values[case.best.step].get(GENERAL)
    if not base or not tuned or base.keys() != tuned.keys():
        return {}
    after = case.blend.values[GENERAL] if case.blend else tuned
    return {"general": compare_queries(base, after, case.blend.general if case.blend else [*base])}
