"""Search logs to training rows: how relevant each clicked item is, corrected for the place where it was shown.

A click needs an examined and a relevant item, and whether an item is examined depends on its position k alone, with
probability theta(k): the position-based model (Craswell et al. 2008, doi:10.1145/1341531.1341545). theta(k) is taken as
max(k ** -eta, 0.1) (Joachims et al. 2017, arXiv:1608.04468, section 6; the floor keeps single clicks far down from
deciding everything). The relevance of an item for a query is then

    sum of clicks / sum of (impressions x theta(position)), at most 1     where the log has impressions,
    sum of (clicks / theta(position))                                     where it has not.

The second is the first times a factor that a query's items share, if they were all shown equally often. The score is
the relevance divided by the largest of the query's items. An item that was shown and never clicked is a negative (score
0): with impressions, when it was examined often enough in expectation; without, when a row with count 0 places it above
a clicked one ("click > skip above", Joachims et al. 2005, doi:10.1145/1076034.1076063).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.reading.files import Blank, Item, read_items
from data_prep.reading.formats import Row, kind, source_names
from data_prep.reading.row_problems import Problem, Problems
from data_prep.records import Record, text_key

LEAST_THETA = 0.1
NAMES = {"clicked_item": "item", "clicked item": "item", "clicks": "count"}  # other names of our columns
ROWS = ("pairs", "lists")


@dataclass(slots=True)
class Shown:
    """What the log says of one item for one query. weighted: sum of clicks / theta; examined: sum of impressions x
    theta, None without impressions; top: the highest place it was shown at."""

    name: str
    extra: dict[str, Any]
    clicks: int = 0
    impressions: int = 0
    weighted: float = 0.0
    examined: float | None = None
    top: int = 1 << 60


@dataclass(slots=True)
class Asked:
    """One query, its items by the key of their text or id, and the lowest place of a click."""

    text: str
    items: dict[int, Shown] = field(default_factory=dict)
    deepest_click: int = 0

    @property
    def clicks(self) -> int:
        return sum(item.clicks for item in self.items.values())


@dataclass(frozen=True)
class Rule:
    """eta: of theta. min_clicks: queries with fewer are left out. min_examined: items that were examined less often in
    expectation are left out (logs with impressions only). positive_score: the least score of a positive in lists."""

    eta: float = 1.0
    min_clicks: int = 2
    min_examined: float = 3.0
    positive_score: float = 0.5

    def problems(self) -> list[str]:
        """What is wrong with these values, in the words of their flags."""
        found = []
        if not 0 <= self.eta < float("inf"):
            found.append(f"--eta {self.eta:g}: must be 0 (no correction) or more")
        if self.min_clicks < 1:
            found.append(f"--min-clicks {self.min_clicks}: must be 1 or more")
        if not 0 <= self.min_examined < float("inf"):
            found.append(f"--min-examined {self.min_examined:g}: must be 0 or more")
        if not 0 < self.positive_score <= 1:
            found.append(f"--positive-score {self.positive_score:g}: must be above 0, and 1 at most")
        return found

    def theta(self, position: int) -> float:
        """The probability that the item at a position, from 1 on, is looked at."""
        return max(position**-self.eta, LEAST_THETA)


def logs(inputs: list[Path], output: Path, *, rule: Rule, rows: str = "pairs", items: Path | None = None) -> int:
    """Writes scored records of search logs (columns query, item, position, count, maybe impressions); returns their
    number. Rows of one query and item, of any input, are added up.

    rows: "pairs", a record with a score for each query and item (losses cosine and cosent); "lists", a record for each
    query whose positives score at least rule.positive_score and whose negatives were never clicked (InfoNCE). items: a
    catalogue with columns id, text, maybe title: the log's items are its ids then. All that is left out is counted.
    In memory: one entry for each query and item, and the catalogue. BadInput: everything wrong, listed.
    """
    assert rows in ROWS
    check([*check_output_file(output, [*inputs, *([items] if items else [])]), *rule.problems()])
    source_names(inputs)  # refuses an input given twice
    problems = Problems()
    catalogue = _catalogue(items, problems) if items else None
    log = _Log(rule)
    for path in inputs:
        log.read(path, problems)
    problems.check()
    if log.extra:
        fate = "kept in metadata, of each pair's first row" if rows == "pairs" else "left out, as a list has many items"
        say(f"note: columns that logs have no use for are {fate}: {', '.join(log.extra)}")
    how = "impressions x theta" if log.with_impressions else "no impressions: clicks / theta"
    say(f"{log.rows:,} rows of {len(log.asked):,} queries ({how}, theta = max(position^-{rule.eta:g}, {LEAST_THETA}))")
    left_out: Counter[str] = Counter()
    with whole_file(output) as lines:
        positives = negatives = count = 0
        for count, record in enumerate(_records(log, rows, catalogue, rule, left_out), 1):
            record.id, record.source = f"{output.stem}:{count}", output.stem
            positives += len(record.positives) if record.score != 0 else 0
            negatives += len(record.negatives) + (record.score == 0)
            lines.write(record.to_json() + "\n")
        why = [f"left out: {number:,} {reason}" for reason, number in left_out.items()]
        if not count:
            raise BadInput([f"{', '.join(map(str, inputs))}: no record can be made", *why])
    for line in why:
        say(line)
    result(f"{output}: {count:,} records: {positives:,} clicked items, {negatives:,} shown without a click")
    return count


def _records(log: "_Log", rows: str, catalogue: dict | None, rule: Rule, left_out: Counter[str]) -> Iterator[Record]:
    make = _pairs if rows == "pairs" else _lists
    for asked in log.asked.values():
        yield from make(asked, _scores(asked, rule, left_out), catalogue, rule, left_out)


class _Log:
    """Rows of all inputs, added up."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.asked: dict[int, Asked] = {}
        self.rows = 0
        self.with_impressions: bool | None = None  # the first row decides
        self.extra: dict[str, None] = {}

    def read(self, path: Path, problems: Problems) -> None:
        try:
            for item in track(read_items(path), f"reading {path.name}"):
                if isinstance(item, Problem):
                    problems.row(item)
                elif not isinstance(item, Blank) and (found := self._add(item)):
                    problems.row(Problem(str(path), item.line, "; ".join(found), item.raw))
        except BadInput as error:
            for message in error.problems:
                problems.file(message)

    def _add(self, item: Item) -> list[str]:
        """Takes a row; what is wrong with it."""
        if not isinstance(item.value, dict):
            return [f"a row of a log must be an object, not {kind(item.value)}"]
        row = Row({NAMES.get(key, key): value for key, value in item.value.items()}, item.table)
        query, name = row.text("query"), row.name("item", required=True)
        position, clicks = _whole(row, "position", 1), _whole(row, "count", 0)
        if self.with_impressions is None:
            self.with_impressions = row.values.get("impressions") is not None
        impressions = _whole(row, "impressions", 0) if self.with_impressions else None
        if not self.with_impressions and row.take("impressions", required=False) is not None:
            row.found.append("key 'impressions' stands here, but not in the first row; every row needs it, or none")
        if row.found:
            return row.found
        self.rows += 1
        self.extra.update(dict.fromkeys(row.values))
        asked = self.asked.setdefault(text_key(query), Asked(query))
        shown = asked.items.get(text_key(name))
        if shown is None:
            extra = {key: value for key, value in row.values.items() if value is not None}
            shown = asked.items[text_key(name)] = Shown(name, extra)
        theta = self.rule.theta(position)
        shown.clicks += clicks
        shown.weighted += clicks / theta
        shown.top = min(shown.top, position)
        if impressions is not None:
            shown.impressions += impressions
            shown.examined = (shown.examined or 0.0) + impressions * theta
        if clicks:
            asked.deepest_click = max(asked.deepest_click, position)
        return []


def _whole(row: Row, key: str, least: int) -> int:
    """A whole number; of a table, a text that is one."""
    value = row.take(key, required=True)
    if isinstance(value, str) and row.table:
        with contextlib.suppress(ValueError):
            value = int(value)
    if isinstance(value, float) and value.is_integer():  # a column of a table with empty cells
        value = int(value)
    if value is None:
        return least
    if isinstance(value, bool) or not isinstance(value, int):
        row.found.append(f"key {key!r} must be a whole number, not {kind(value)}")
        return least
    if value < least:
        counted = "; positions count from 1" if key == "position" else ""
        row.found.append(f"key {key!r} is {value}, below {least}{counted}")
        return least
    return value


def _catalogue(path: Path, problems: Problems) -> dict[int, tuple[str, str]]:
    """key of an id -> (id, title and text)."""
    found = {}
    try:
        for item in track(read_items(path), f"reading {path.name}"):
            if isinstance(item, Blank):
                continue
            if isinstance(item, Problem):
                problems.row(item)
                continue
            if not isinstance(item.value, dict):
                problems.row(
                    Problem(str(path), item.line, f"must be an object with id and text, not {kind(item.value)}")
                )
                continue
            row = Row(item.value, item.table)
            name, title, text = row.name("id", required=True), row.text("title", required=False), row.text("text")
            if not row.found and text_key(name) in found:
                row.found.append(f"id {name!r} stands twice")
            if row.found:
                problems.row(Problem(str(path), item.line, "; ".join(row.found), item.raw))
            else:
                found[text_key(name)] = (name, f"{title}\n{text}" if title else text)
    except BadInput as error:
        for message in error.problems:
            problems.file(message)
    return found


def _scores(asked: Asked, rule: Rule, left_out: Counter[str]) -> dict[int, float]:
    """item key -> score in 0..1; 0 for items that count as shown and not wanted. Empty where the query is left out."""
    if asked.clicks < rule.min_clicks:
        left_out[f"queries with fewer than {rule.min_clicks} clicks (--min-clicks)"] += 1
        return {}
    relevance = {}
    for key, item in asked.items.items():
        if item.examined is not None and (item.examined < rule.min_examined or not item.examined):
            left_out[f"items examined less than {rule.min_examined:g} times in expectation (--min-examined)"] += 1
        elif item.clicks:
            relevance[key] = item.weighted if item.examined is None else min(1.0, item.clicks / item.examined)
        elif item.examined is not None or item.top < asked.deepest_click:
            relevance[key] = 0.0
        else:
            left_out["items without a click that stood below every clicked one"] += 1
    best = max(relevance.values(), default=0.0)
    if not best:
        left_out["queries without a clicked item that counts"] += 1
        return {}
    return {key: round(value / best, 6) for key, value in relevance.items()}


def _pairs(
    asked: Asked, scores: dict[int, float], catalogue: dict | None, rule: Rule, left_out: Counter[str]
) -> Iterator[Record]:
    for key, score in scores.items():
        item = asked.items[key]
        if text := _text(key, item, catalogue, left_out):
            counts = {"clicks": item.clicks} | ({} if item.examined is None else {"impressions": item.impressions})
            documents = [] if catalogue is None else [item.name]
            yield Record(asked.text, [text], score=score, doc_ids=documents, metadata=item.extra | counts)


def _lists(
    asked: Asked, scores: dict[int, float], catalogue: dict | None, rule: Rule, left_out: Counter[str]
) -> Iterator[Record]:
    texts = {key: _text(key, asked.items[key], catalogue, left_out) for key in scores}
    kept = {key: score for key, score in scores.items() if texts[key]}
    positives = sorted((key for key in kept if kept[key] >= rule.positive_score), key=lambda key: -kept[key])
    between = sum(0 < score < rule.positive_score for score in kept.values())
    if between:
        left_out[f"clicked items that score below {rule.positive_score:g} (--positive-score)"] += between
    if positives:
        documents = [] if catalogue is None else [asked.items[key].name for key in positives]
        negatives = [texts[key] for key in kept if not kept[key]]
        yield Record(asked.text, [texts[key] for key in positives], negatives, doc_ids=documents)
    elif kept:
        left_out["queries without a positive that the catalogue has"] += 1


def _text(key: int, item: Shown, catalogue: dict | None, left_out: Counter[str]) -> str:
    if catalogue is None:
        return item.name
    if key not in catalogue:
        left_out["items that the catalogue lacks (--items)"] += 1
        return ""
    return catalogue[key][1]
