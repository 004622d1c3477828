"""Metrics of every category of the queries or pairs, so that a gain on average hides no loss. No torch."""

from data_prep.reading.categories import Categories
from trainer.evaluation.compare import Scores, compare, means, part_of
from trainer.evaluation.pair_metrics import PairScores


def by_category(categories: Categories, tuned: Scores, base: Scores | None = None) -> dict:
    """Returns plain values: field, owner, without, and of every category its number of queries or pairs with `metrics`,
    or beside a base `comparison`. Both are None for pairs of one category whose scores are all equal.

    An interval is None where a category holds one query: nothing can be resampled.
    """
    unit = "pairs" if isinstance(tuned, PairScores) else "queries"
    table = {}
    for name, members in categories.members.items():
        own = part_of(tuned, members)
        row = {unit: len(members)}
        if isinstance(own, PairScores) and len({*own.scores.tolist()}) < 2:
            row |= {"comparison" if base else "metrics": None}
        elif base is None:
            row |= {"metrics": means(own)}
        else:
            row |= {"comparison": _with_interval(compare(part_of(base, members), own), len(members))}
        table[name] = row
    head = {"field": categories.field, "owner": categories.owner, "without": categories.without}
    return head | {"categories": table}


def _with_interval(comparison: dict[str, dict], members: int) -> dict[str, dict]:
    return comparison if members > 1 else {name: row | {"interval_95": None} for name, row in comparison.items()}


def losing(table: dict, comparison: dict[str, dict]) -> list[str]:
    """Returns a line per category that loses beyond its interval in a metric that gains on average.

    table: of by_category. comparison: of all queries or pairs.
    """
    lines = []
    gained = [name for name, row in comparison.items() if row["difference"] > 0]
    for category, row in table["categories"].items():
        of, unit = row["comparison"] or {}, "queries" if "queries" in row else "pairs"
        lost = [name for name in gained if name in of and of[name]["interval_95"] and of[name]["interval_95"][1] < 0]
        if not lost:
            continue
        parts = [
            f"{name} {of[name]['difference']:+.4f} ({of[name]['interval_95'][0]:+.4f} … "
            f"{of[name]['interval_95'][1]:+.4f}; on average {comparison[name]['difference']:+.4f})"
            for name in lost
        ]
        lines.append(f"{table['field']} {category!r} loses ({row[unit]:,} {unit}): {', '.join(parts)}")
    return lines
