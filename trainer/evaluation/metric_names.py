"""Names of metrics: one parser for flags and run files. No torch.

- Rankings: `nDCG@5`, `recall@20` and so on; every cut-off up to the depth of the ranking.
- Scored pairs: `spearman` and `pearson`; `auc` and `average_precision` too where the scores are labels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.spelling import misspelt, respelt
from trainer.inference.metrics import DEPTH

METRICS = ("nDCG@10", "MRR@10", "MAP", "recall@1", "recall@10", "recall@100")  # of a ranking, by default
CORRELATIONS, OF_LABELS = ("spearman", "pearson"), ("auc", "average_precision")
PAIR_METRICS = (*CORRELATIONS, *OF_LABELS)
_CUT = re.compile(r"[1-9]\d{0,8}", re.ASCII)
# cosine_ndcg@10, eval_NAME_cosine_recall@5 and spearman_cosine of sentence-transformers; ndcg_at_10 of MTEB
_THEIR_RANKING = re.compile(r"(?:.*_)?(accuracy|ndcg|mrr|map|recall|precision|hit|success)(?:@|_at_)(\d+)")
_THEIR_PAIRS = re.compile(r"(?:.*_)?(spearman|pearson|ap)(?:_(?:cosine|dot|euclidean|manhattan|max))?")
_OURS = {"accuracy": "hit", "ndcg": "nDCG", "mrr": "MRR", "map": "MAP", "ap": "average_precision"}


@dataclass(frozen=True)
class Kind:
    """A family of metrics of a ranking, by trec_eval's names; None: does not exist."""

    whole: str | None  # the measure over the whole ranking
    cut: str | None  # the measure at a cut-off


# MRR@k is trec_eval's recip_rank over the first k documents: it has no cut-off of its own.
KINDS = {
    "nDCG": Kind("ndcg", "ndcg_cut"),
    "MRR": Kind("recip_rank", "recip_rank"),
    "MAP": Kind("map", "map_cut"),
    "recall": Kind(None, "recall"),
    "precision": Kind(None, "P"),
    "hit": Kind(None, "success"),
    "success": Kind(None, "success"),
    "R-precision": Kind("Rprec", None),
}
KNOWN = "nDCG, nDCG@k, MRR, MRR@k, MAP, MAP@k, recall@k, precision@k, hit@k (success@k), R-precision"
KNOWN_OF_PAIRS = ", ".join(PAIR_METRICS)


@dataclass(frozen=True)
class Metric:
    """A metric of a ranking."""

    name: str  # as it was written
    kind: Kind
    cutoff: int | None  # None: the whole ranking


def of_ranking(name: str) -> Metric | None:
    """Returns the metric of a ranking that has this name, or None. Raises BadInput for a cut-off that cannot be."""
    stem, at, digits = name.partition("@")
    kind = KINDS.get(stem)
    if kind is None or (not at and kind.whole is None) or (at and kind.cut is None):
        return None
    if not at:
        return Metric(name, kind, None)
    if not _CUT.fullmatch(digits) or int(digits) > DEPTH:
        raise BadInput(f"{name}: the cut-off is a whole number from 1 to {DEPTH}, the documents that are ranked")
    return Metric(name, kind, int(digits))


def name_problem(name: str, mend: str = "") -> str:
    """Returns the reason that a name is no metric, or an empty string. mend: replaces the nearest known name."""
    try:
        if name in PAIR_METRICS or of_ranking(name):
            return ""
    except BadInput as error:
        return str(error)
    stem, _, digits = name.partition("@")
    kind = KINDS.get(stem)
    if kind and kind.cut is None:
        return f"{name}: has no cut-off; write {stem}"
    if kind:
        return f"{name}: needs a cut-off, as in {stem}@10"
    known = [*METRICS, *PAIR_METRICS, *(f"{stem}@{digits or 10}" for stem in KINDS if KINDS[stem].cut), "R-precision"]
    same, theirs, near = respelt(name, known), _of_other_trainers(name), misspelt(name, known)
    if not mend and theirs and not same:
        mend = f" Write {theirs}."
    elif not mend and (close := same or near):
        mend = f" Did you mean {close[0]!r}?"
    return f"{name!r} is no metric.{mend} Known are {KNOWN}; for scored pairs {KNOWN_OF_PAIRS}"


def _of_other_trainers(name: str) -> str:
    """Returns our name of a metric that sentence-transformers or MTEB name otherwise, or an empty string."""
    if not name.islower():  # theirs are
        return ""
    if match := _THEIR_RANKING.fullmatch(name):
        return f"{_OURS.get(match[1], match[1])}@{match[2]}"
    match = _THEIR_PAIRS.fullmatch(name)
    return _OURS.get(match[1], match[1]) if match else ""


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics among the values of a logged evaluation."""
    stems = (name.partition("@")[0] for name in event)
    return {name: event[name] for name, stem in zip(event, stems) if stem in KINDS or name in PAIR_METRICS}


def check_names(names: Sequence[str], key: str) -> None:
    """Raises BadInput with every name that is no metric, or stands twice. key: the flag or key that names them."""
    problems = [f"{key}: {problem}" for name in names if (problem := name_problem(name))]
    problems += [f"{key}: {name} stands twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if problems:
        raise BadInput(problems)


def measured_on(data: RetrievalSet | ScoredPairs, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that a set measures; its kind's own metrics where none of them fits."""
    if isinstance(data, RetrievalSet):
        return tuple(name for name in names if name not in PAIR_METRICS) or METRICS
    default = PAIR_METRICS if data.binary else CORRELATIONS
    return tuple(name for name in names if name in default) or default


def unmeasured(sets: Iterable[RetrievalSet | ScoredPairs], names: Sequence[str], key: str) -> list[str]:
    """Returns a line for every name that none of the sets measures."""
    parts = [part for data in sets for part in data.parts]
    pairs = [part for part in parts if isinstance(part, ScoredPairs)]
    lines = []
    for name in names:
        if any(name in measured_on(part, names) for part in parts):
            continue
        if name not in PAIR_METRICS:
            lines.append(f"{key}: {name} is of a ranking, and no set has judgements; for scored pairs {KNOWN_OF_PAIRS}")
        elif not pairs:
            lines.append(f"{key}: {name} is of scored pairs, and no set has scores")
        else:
            lines.append(f"{key}: {name} needs labels, and the scores of {pairs[0].name} are not all 0 and 1")
    return lines
