"""Search logs to training rows: the relevance of each clicked item, corrected for the position it was shown at.

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
from decimal import Decimal
from pathlib import Path
from typing import Any

from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file, whole_file
from data_prep.reading.files import Blank, Item, half_a_pair, read_items
from data_prep.reading.formats import source_names
from data_prep.reading.row import Row, kind
from data_prep.reading.row_problems import Problem, Problems
from data_prep.records import Record, document_text, text_key

LEAST_THETA = 0.1
MOST = 2**53  # of clicks, impressions and positions
COLUMNS = ("query", "item", "position", "count")
NAMES = {"clicked_item": "item", "clicked item": "item", "clicks": "count"}  # other names of our columns
ROWS = ("pairs", "lists")


@dataclass(slots=True)
class LoggedItem:
    """The rows of one item for one query, added up."""

    name: str
    extra: dict[str, Any]  # column -> value of the first row
    clicks: int = 0
    impressions: int = 0
    weighted: float = 0.0  # sum of clicks / theta
    examined: float | None = None  # sum of impressions x theta; None without impressions
    top: int = 1 << 60  # the highest position it was shown at


@dataclass(slots=True)
class LoggedQuery:
    """The rows of one query."""

    text: str
    items: dict[int | str, LoggedItem] = field(default_factory=dict)  # by id, or by the key of their text
    deepest_click: int = 0  # the lowest position of a click


@dataclass(frozen=True)
class Rule:
    """Thresholds, and the attention model."""

    eta: float = 1.0  # of theta
    min_clicks: int = 2  # queries with fewer are left out
    min_examined: float = 3.0  # items examined less often in expectation are left out (logs with impressions only)
    positive_score: float = 0.5  # least score of a positive in lists

    def problems(self) -> list[str]:
        """Returns the problems with these values, named by their flags."""
        problems = []
        if not 0 <= self.eta < float("inf"):
            problems.append(f"--eta {self.eta:g}: must be 0 (no correction) or more")
        if self.min_clicks < 1:
            problems.append(f"--min-clicks {self.min_clicks}: must be 1 or more")
        if not 0 <= self.min_examined < float("inf"):
            problems.append(f"--min-examined {self.min_examined:g}: must be 0 or more")
        if not 0 < self.positive_score <= 1:
            problems.append(f"--positive-score {self.positive_score:g}: must be above 0, and 1 at most")
        return problems

    def theta(self, position: int) -> float:
        """Returns the probability that the item at a position, from 1 on, is examined."""
        return max(position**-self.eta, LEAST_THETA)


def logs(inputs: list[Path], output: Path, *, rule: Rule, rows: str = "pairs", items: Path | None = None) -> int:
    """Writes scored records of search logs and returns their number.

    Columns of a log: query, item, position, count, maybe impressions. Rows of one query and item, of any input, are
    added up. rows: "pairs", a record with a score for each query and item (losses cosine and cosent); "lists", a record
    for each query, whose positives score at least rule.positive_score and whose negatives were never clicked (InfoNCE).
    items: a catalogue with columns id, text, maybe title; the log's items are its ids then, compared exactly.
    Everything left out is counted. Memory holds an entry for each query and item, and the catalogue. Raises BadInput
    with every problem.
    """
    assert rows in ROWS
    check([*check_output_file(output, [*inputs, *([items] if items else [])]), *rule.problems()])
    source_names(inputs)  # refuses an input given twice
    problems = Problems()
    catalogue = _catalogue(items, problems) if items else None
    log = _Log(rule, by_id=catalogue is not None)
    for path in inputs:
        log.read(path, problems)
    problems.check()
    if log.extra:
        fate = "kept in metadata, of each pair's first row" if rows == "pairs" else "left out, as a list has many items"
        say(f"note: columns that logs have no use for are {fate}: {', '.join(log.extra)}")
    how = "impressions x theta" if log.with_impressions else "no impressions: clicks / theta"
    theta = f"theta = max(position^-{rule.eta:g}, {LEAST_THETA})"
    say(f"{log.rows:,} rows of {len(log.queries):,} queries ({how}, {theta})")
    for line in _other_spellings(log, catalogue or {}):
        say(line)
    left_out: Counter[str] = Counter()
    with whole_file(output) as lines:
        positives = negatives = count = 0
        for count, record in enumerate(_records(log, rows, catalogue, rule, left_out), 1):
            record.id, record.source = f"{output.stem}:{count}", output.stem
            positives += len(record.positives) if record.score != 0 else 0
            negatives += len(record.negatives) + (record.score == 0)
            lines.write(record.to_json() + "\n")
        notes = [f"left out: {number:,} {reason}" for reason, number in left_out.items()]
        if not count:
            raise BadInput([f"{', '.join(map(str, inputs))}: no record can be made", *notes])
    for line in notes:
        say(line)
    result(f"{output}: {count:,} records: {positives:,} clicked items, {negatives:,} shown without a click")
    return count


def _records(log: "_Log", rows: str, catalogue: dict | None, rule: Rule, left_out: Counter[str]) -> Iterator[Record]:
    make = _pairs if rows == "pairs" else _lists
    for query in log.queries.values():
        yield from make(query, _scores(query, rule, left_out), catalogue, rule, left_out)


class _Log:
    """Rows of all inputs, added up."""

    def __init__(self, rule: Rule, by_id: bool):
        """by_id: items are ids, which are equal to the letter; otherwise texts, equal in their normal form."""
        self.rule, self.by_id = rule, by_id
        self.queries: dict[int, LoggedQuery] = {}
        self.rows = 0
        self.with_impressions: bool | None = None  # the first row decides
        self.extra: dict[str, None] = {}  # columns that logs have no use for, in order

    def read(self, path: Path, problems: Problems) -> None:
        for item in _items(path, problems):
            if faults := self._add(item):
                problems.row(Problem(str(path), item.line, "; ".join(faults), item.raw))

    def _add(self, item: Item) -> list[str]:
        """Adds a row, or returns the problems with it."""
        if not isinstance(item.value, dict):
            return [f"a row of a log must be an object, not {kind(item.value)}"]
        values = {NAMES.get(key, key): value for key, value in item.value.items()}
        if values.keys().isdisjoint(COLUMNS):
            return [f"no column of a log ({', '.join(COLUMNS)}), but {', '.join(map(repr, item.value))}; rename them"]
        row = Row(values, item.table)
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
        logged = self.queries.setdefault(text_key(query), LoggedQuery(query))
        key = name if self.by_id else text_key(name)
        shown = logged.items.get(key)
        if shown is None:
            extra = {column: value for column, value in row.values.items() if value is not None}
            shown = logged.items[key] = LoggedItem(name, extra)
        theta = self.rule.theta(position)
        shown.clicks += clicks
        shown.weighted += clicks / theta
        shown.top = min(shown.top, position)
        if impressions is not None:
            shown.impressions += impressions
            shown.examined = (shown.examined or 0.0) + impressions * theta
        if clicks:
            logged.deepest_click = max(logged.deepest_click, position)
        return []


def _items(path: Path, problems: Problems) -> Iterator[Item]:
    """Yields the rows of a file that can be read, and adds the problems with the others."""
    try:
        for item in track(read_items(path), f"reading {path.name}"):
            if isinstance(item, Problem):
                problems.row(item)
            elif isinstance(item, Blank):
                continue
            elif reason := half_a_pair(item):
                problems.row(Problem(str(path), item.line, reason, item.raw))
            else:
                yield item
    except BadInput as error:
        for message in error.problems:
            problems.file(message)


def _whole(row: Row, key: str, least: int) -> int:
    """Returns the whole number of a key; in a table it may be a text, or 1.0 where pandas met an empty cell."""
    value = row.take(key, required=True)
    if isinstance(value, str) and row.table:
        with contextlib.suppress(ValueError):
            value = int(value)
    if isinstance(value, str | Decimal) and row.table:
        with contextlib.suppress(ValueError):
            number = float(value)
            value = number if number.is_integer() else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return least
    if isinstance(value, bool) or not isinstance(value, int):
        row.found.append(f"key {key!r} must be a whole number, not {kind(value)}")
        return least
    if value > MOST:
        row.found.append(f"key {key!r} is beyond 2^53, the largest count that is exact")
        return least
    if value < least:
        counted = "; positions count from 1" if key == "position" else ""
        row.found.append(f"key {key!r} is {value}, below {least}{counted}")
        return least
    return value


def _catalogue(path: Path, problems: Problems) -> dict[str, str]:
    """Returns id -> title and text."""
    catalogue: dict[str, str] = {}
    for item in _items(path, problems):
        if not isinstance(item.value, dict):
            problems.row(Problem(str(path), item.line, f"must be an object with id and text, not {kind(item.value)}"))
            continue
        row = Row(item.value, item.table)
        name, title, text = row.name("id", required=True), row.text("title", required=False), row.text("text")
        if not row.found and name in catalogue:
            row.found.append(f"id {name!r} stands twice")
        if row.found:
            problems.row(Problem(str(path), item.line, "; ".join(row.found), item.raw))
        else:
            catalogue[name] = document_text(title, text)
    return catalogue


def _other_spellings(log: "_Log", catalogue: dict[str, str]) -> list[str]:
    """Returns a note on items that the catalogue lacks, but has with other case, width or white space."""
    lacking = {item.name for query in log.queries.values() for item in query.items.values()} - catalogue.keys()
    spellings = {text_key(name): name for name in catalogue} if lacking else {}
    pairs = [(name, spellings[text_key(name)]) for name in sorted(lacking) if text_key(name) in spellings]
    if not pairs:
        return []
    one, other = pairs[0]
    differ = f"{len(pairs):,} items differ from an id of the catalogue in case, width or white space only"
    return [f"note: {differ}, such as {one!r} from {other!r}; ids are compared exactly"]


def _scores(query: LoggedQuery, rule: Rule, left_out: Counter[str]) -> dict[int | str, float]:
    """Returns item key -> score in 0..1, 0 for negatives. Empty if the query is left out."""
    if sum(item.clicks for item in query.items.values()) < rule.min_clicks:
        left_out[f"queries with fewer than {rule.min_clicks} clicks (--min-clicks)"] += 1
        return {}
    relevance = {}
    for key, item in query.items.items():
        if item.examined is not None and (item.examined < rule.min_examined or not item.examined):
            left_out[f"items examined less than {rule.min_examined:g} times in expectation (--min-examined)"] += 1
        elif item.clicks:
            relevance[key] = item.weighted if item.examined is None else min(1.0, item.clicks / item.examined)
        elif item.examined is not None or item.top < query.deepest_click:
            relevance[key] = 0.0
        else:
            left_out["items without a click that stood below every clicked one"] += 1
    best = max(relevance.values(), default=0.0)
    if not best:
        left_out["queries without a clicked item that counts"] += 1
        return {}
    return {key: round(value / best, 6) for key, value in relevance.items()}


def _pairs(
    query: LoggedQuery, scores: dict[int | str, float], catalogue: dict | None, rule: Rule, left_out: Counter[str]
) -> Iterator[Record]:
    for key, score in scores.items():
        item = query.items[key]
        if text := _text(key, item, catalogue, left_out):
            counts = {"clicks": item.clicks} | ({} if item.examined is None else {"impressions": item.impressions})
            documents = [] if catalogue is None else [item.name]
            yield Record(query.text, [text], score=score, doc_ids=documents, metadata=item.extra | counts)


def _lists(
    query: LoggedQuery, scores: dict[int | str, float], catalogue: dict | None, rule: Rule, left_out: Counter[str]
) -> Iterator[Record]:
    """Yields one record of positives and negatives, if the query has a positive."""
    texts = {key: _text(key, query.items[key], catalogue, left_out) for key in scores}
    kept = {key: score for key, score in scores.items() if texts[key]}
    positives = sorted((key for key in kept if kept[key] >= rule.positive_score), key=lambda key: -kept[key])
    between = sum(0 < score < rule.positive_score for score in kept.values())
    if between:
        left_out[f"clicked items that score below {rule.positive_score:g} (--positive-score)"] += between
    if positives:
        documents = [] if catalogue is None else [query.items[key].name for key in positives]
        negatives = [texts[key] for key in kept if not kept[key]]
        yield Record(query.text, [texts[key] for key in positives], negatives, doc_ids=documents)
    elif kept:
        left_out["queries without a positive that the catalogue has"] += 1


def _text(key: int | str, item: LoggedItem, catalogue: dict | None, left_out: Counter[str]) -> str:
    """Returns the text of an item, or "" for one that the catalogue lacks."""
    if catalogue is None:
        return item.name
    if key not in catalogue:
        left_out["items that the catalogue lacks (--items)"] += 1
        return ""
    return catalogue[key]
