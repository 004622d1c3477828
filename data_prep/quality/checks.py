"""Checks of rows that are well-formed one by one: a function per check, for gate.py and inspect.py.

A check returns findings; some return a table as well. Checks over Keys are exact for the rows that were read; checks
over records are estimates from a sample.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from data_prep.common.console import track
from data_prep.common.finite import decode_json
from data_prep.common.workers import Workers, batches
from data_prep.quality.decontaminate import HeldOut
from data_prep.quality.row_keys import Keys
from data_prep.records import Record
from data_prep.texts.languages import UNSURE, language
from data_prep.texts.near_duplicates import NearDuplicates, signatures_of_any
from data_prep.texts.prompts import SIDES, Pair
from data_prep.texts.row_prompts import RowPrompt
from data_prep.texts.token_lengths import Reader

NO_TRAINING = ("leakage", "positives_as_negatives")  # findings that refuse a run unless `data.allow` lists them
SHOWN = 3  # ids of a finding
AT_ONCE = 1000  # rows in memory at a time
NOT_A_LANGUAGE = "zxx"
OTHER_LANGUAGE = 0.01  # least share of a source's texts of known language that makes other languages a finding
SMALL_SOURCE = 0.01  # share of all rows; a smaller source is a finding
COMMON_START, FEW = 0.5, 20  # least share and number of a source's texts whose common start may be a prompt
Take = Callable[[list[int]], list[Record]]  # rows by number, like Rows.take
_NAME = (
    "(?:a|abbr|article|b|blockquote|body|br|center|code|dd|div|dl|dt|em|font|h[1-6]|head|hr|html|i|img|li|main|nav|ol|"
    "p|pre|script|section|span|strong|style|table|tbody|td|th|tr|ul)"
)
# a declaration; or two tags of HTML, the first at the start; or an element of XML from start to end
_HTML = re.compile(
    rf"<!doctype\b|<\?xml\b|<{_NAME}(?:\s[^<>]*)?/?>.*</?{_NAME}(?:\s[^<>]*)?/?>"
    r"|<([a-z][\w:.-]*)(?:\s[^<>]*)?>.*</\1\s*>\Z",
    re.IGNORECASE | re.DOTALL,
)
_BLANKS = "\ufeff \t\r\n"
_START = re.compile(r"[^\n:]{1,40}:\s")


@dataclass(frozen=True)
class Finding:
    """A problem of some rows or texts."""

    name: str
    severity: str  # "error": training is refused; or "warning"
    count: int  # rows (or texts) with the problem
    of: int  # rows (or texts) that were checked
    text: str  # one line
    mend: str = ""  # what to do; "" if there may be nothing to do
    about: str = ""  # the key of the run file, or the flag, that it concerns
    ids: tuple[str, ...] = ()  # some of the rows

    def line(self) -> str:
        """Line for people: problem, examples, mend."""
        ids = [one if len(one) <= 40 else f"…{one[-39:]}" for one in self.ids]
        shown = f" ({', '.join(ids)}{' …' if self.count > len(ids) else ''})" if ids else ""
        return f"{self.name}: {self.text}{shown}" + (f"; {self.mend}" if self.mend else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ids": list(self.ids)}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "Finding":
        return cls(**{**values, "ids": tuple(values["ids"])})


def _finding(name: str, keys: Keys, rows: Any, of: int, text: str, mend: str, about: str = "") -> list[Finding]:
    """Returns a finding about the given rows, or [] without rows."""
    if not len(rows):
        return []
    severity = "error" if name in NO_TRAINING else "warning"
    return [Finding(name, severity, len(rows), of, text, mend, about, tuple(keys.ids[row] for row in rows[:SHOWN]))]


def leakage(keys: Keys, train: int, eval_keys: Any, name: str, about: str, mend: str) -> list[Finding]:
    """Finds rows, among the first `train` ones, with a text of an evaluation set. eval_keys: int64 keys of it."""
    queries, positives = (rows[rows < train] for rows in keys.holding(eval_keys))
    rows = np.union1d(queries, positives)
    sides = f"{len(queries):,} by their query, {len(positives):,} by a positive"
    text = f"{len(rows):,} of {train:,} train rows hold a query or relevant document of {name}: {sides}"
    return _finding("leakage", keys, rows, train, text, mend, about)


def leave_out(name: str, near: float | None = None) -> str:
    """Mend of leakage from a set."""
    option = f" --near-duplicates {near:g}" if near else ""
    return f"python -m data_prep shard … --exclude {name}{option} leaves them out"


def texts_of_rows(keys: Keys) -> list[Finding]:
    """Finds positives listed as negatives, and queries equal to one of their positives."""
    rows_of = keys.positives_as_negatives(), keys.equal_texts()
    negative, equal = (f"{len(rows):,} of {len(keys):,} rows have" for rows in rows_of)
    negative += " a negative that is a positive of their query"
    equal += " a query that is one of their positives"
    return [
        *_finding("positives_as_negatives", keys, rows_of[0], len(keys), negative, "take it out of their negatives"),
        *_finding("equal_texts", keys, rows_of[1], len(keys), equal, "they teach nothing but to copy"),
    ]


def duplicates(keys: Keys) -> list[Finding]:
    rows = keys.duplicates()
    text = f"{len(rows):,} of {len(keys):,} rows have the query and positives of an earlier row"
    return _finding("duplicates", keys, rows, len(keys), text, "shard removes them")


def near_duplicates(
    take: Take, rows: list[int], similarity: float, pool: Workers | None = None
) -> tuple[list[Finding], dict[str, Any]]:
    """Finds near duplicates. rows: ascending numbers of rows without exact duplicates. pool: computes signatures;
    None: this process does."""
    index = NearDuplicates(similarity)
    blocks = (take(rows[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE))
    done = (pool or Workers(1)).map(partial(signatures_of_any, similarity=similarity), blocks)
    for keys, sizes in track(done, "near duplicates, 1,000 rows each", -(-len(rows) // AT_ONCE)):
        index.add_signatures(keys, sizes)
    near = index.find(lambda numbers: take([rows[number] for number in numbers])).nonzero()[0].tolist()
    table = {"similarity": similarity, "rows": len(near), "of": len(rows), "unsure": index.unsure}
    if not near:
        return [], table
    text = f"{len(near):,} of {len(rows):,} rows are near duplicates of another one (Jaccard {similarity:g} or more)"
    mend = f"shard --near-duplicates {similarity:g} leaves them out"
    ids = tuple(record.id for record in take([rows[number] for number in near[:SHOWN]]))
    return [Finding("near_duplicates", "warning", len(near), len(rows), text, mend, ids=ids)], table


def near_leakage(records: list[Record], held: HeldOut, name: str, about: str, mend: str) -> list[Finding]:
    """Finds rows with a near duplicate of a text of an evaluation set; equal texts are another finding."""
    matched = [(record, match) for record, match in zip(records, held.matches(records)) if match]
    near = [record.id for record, match in matched if match.similarity < 1]
    if not near:
        return []
    text = f"{len(near):,} of {len(records):,} rows nearly hold (Jaccard {held.near:g} or more) a text of {name}"
    return [Finding("near_leakage", "warning", len(near), len(records), text, mend, about, tuple(near[:SHOWN]))]


def languages(records: dict[str, list[Record]], pool: Workers | None = None) -> tuple[list[Finding], dict[str, Any]]:
    """Finds mixed languages. records: those of each source. pool: as for near_duplicates.

    The table: {source: {"query": {language: texts}, "positive": …, "differ": rows whose query and positive differ}}.
    """
    findings, table = [], {}
    for source, rows in records.items():
        texts = batches(((row.query, row.positives[0]) for row in rows), AT_ONCE)
        done = track((pool or Workers(1)).map(_languages_of, texts), "languages of the rows", len(rows), len)
        queries, positives = zip(*chain.from_iterable(done))
        known = [{one, other}.isdisjoint({UNSURE, NOT_A_LANGUAGE}) for one, other in zip(queries, positives)]
        differ = [row for row, one, other, sure in zip(rows, queries, positives, known) if sure and one != other]
        table[source] = {
            "query": dict(Counter(queries).most_common()),
            "positive": dict(Counter(positives).most_common()),
            "differ": len(differ),
        }
        findings += _other_languages(source, rows, positives)
        if len(differ) >= OTHER_LANGUAGE * sum(known) > 0:
            text = f"{len(differ):,} of {len(rows):,} rows of {source!r} have query and positive in different languages"
            ids = tuple(record.id for record in differ[:SHOWN])
            findings.append(Finding("languages_differ", "warning", len(differ), len(rows), text, ids=ids))
    return findings, table


def _languages_of(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(language(query), language(positive)) for query, positive in pairs]


def _other_languages(source: str, rows: list[Record], positives: tuple[str, ...]) -> list[Finding]:
    counts = Counter(code for code in positives if code not in (UNSURE, NOT_A_LANGUAGE))
    if not counts:
        return []
    most = counts.most_common(1)[0][0]
    others = counts.total() - counts[most]
    if others < OTHER_LANGUAGE * counts.total():
        return []
    shares = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(5))
    text = f"{others:,} of {len(rows):,} positives of {source!r} are not in its main language ({shares})"
    ids = [row.id for row, code in zip(rows, positives) if code not in (UNSURE, NOT_A_LANGUAGE, most)]
    return [Finding("languages", "warning", others, len(rows), text, ids=tuple(ids[:SHOWN]))]


def prompts(records: dict[str, list[Record]], reader: Reader | None) -> list[Finding]:
    """Finds texts that begin with their prompt already, and sources whose texts share a start like a prompt. reader:
    None: the prompts are not known."""
    findings = []
    for source, rows in records.items():
        own = [reader.own_prompts.of_record(reader.rules, row) if reader else Pair("", "") for row in rows]
        pairs = {
            "query": [(pair.query, row.query, row) for pair, row in zip(own, rows)],
            "passage": [(pair.passage, text, row) for pair, row in zip(own, rows) for text in row.positives],
        }
        for side in SIDES:
            of_source = reader and source in getattr(reader.own_prompts, side)
            key = f"sources.{source}.{side}_prompt" if of_source else f"model.{side}_prompt"
            of_row = reader and reader.own_prompts.of_rows.get(side)
            findings += _prompts_of(side, pairs[side], source, key, of_row)
    return findings


def _prompts_of(
    side: str, pairs: list[tuple[str, str, Record]], source: str, key: str, of_row: RowPrompt | None
) -> list[Finding]:
    """pairs: the prompt of a text, the text, and its row. key: of the run file, where the prompt of a row without its
    own belongs."""
    texts = [text for _, text, _ in pairs]
    again = [(prompt, row) for prompt, text, row in pairs if prompt.strip() and text.startswith(prompt.rstrip())]
    if count := len(again):
        (start, by_row), _ = Counter(
            (prompt, of_row is not None and of_row.of(row.metadata) is not None) for prompt, row in again
        ).most_common(1)[0]
        what, key = "begin with their prompt {start!r} already", f"data.row_{side}_prompt" if by_row else key
        mend = "take it out of the texts, or " + (f"leave out {key}" if by_row else f"set {key} to ''")
    else:
        starts = Counter(match.group().lower() for text in texts if (match := _START.match(text)))
        start, count = starts.most_common(1)[0] if starts else ("", 0)
        if count < max(COMMON_START * len(texts), FEW):
            return []
        what, mend = "begin with {start!r}", f"if that is a prompt, it belongs in {key}"
    text = f"{count:,} of {len(texts):,} {side} texts of {source!r} {what.format(start=start)}"
    return [Finding("prompts", "warning", count, len(texts), text, mend, key)]


def markup(records: dict[str, list[Record]]) -> list[Finding]:
    """Finds texts that are JSON, HTML or XML as a whole. records: those of each source."""
    findings = []
    for source, rows in records.items():
        sides = {"query": [(row.query,) for row in rows], "passage": [(*row.positives, *row.negatives) for row in rows]}
        for side, texts in sides.items():
            kinds = [[kind for text in some if (kind := markup_of(text))] for some in texts]
            counts, of = Counter(kind for some in kinds for kind in some), sum(map(len, texts))
            if not counts:
                continue
            listed = " and ".join(f"{count:,} are {kind}" for kind, count in sorted(counts.items()))
            text = f"of {of:,} {side} texts of {source!r}, {listed} as a whole"
            ids = tuple(row.id for row, some in zip(rows, kinds) if some)[:SHOWN]
            mend = "train on the plain text in them (generate --text-field names a field within JSON)"
            findings.append(Finding("markup", "warning", counts.total(), of, text, mend, ids=ids))
    return findings


def markup_of(text: str) -> str | None:
    """Returns "JSON" or "HTML or XML" for a text that is that as a whole; None for prose that has some of it."""
    text = text.strip(_BLANKS)
    if text.startswith(("{", "[")):
        return "JSON" if _is_json(text) else None
    if text.startswith("&lt;"):
        text = html.unescape(text)
    return "HTML or XML" if text.startswith("<") and _HTML.match(text) else None


def _is_json(text: str) -> bool:
    """Returns True for an object with keys and for a list of texts or objects: not for {}, [1] or [x]."""
    try:
        value = decode_json(text)
    except ValueError:
        return False
    return bool(value) and (isinstance(value, dict) or any(isinstance(item, dict | list | str) for item in value))


def truncation(table: dict[str, Any]) -> list[Finding]:
    """Finds truncated texts. table: see token_lengths.py."""
    findings = []
    for field, lengths in table.items():
        tail = f" (median {lengths['p50']:,}, 99 % up to {lengths['p99']:,}, longest {lengths['max']:,})"
        findings += cut_texts(field, lengths["cut"], lengths["texts"], lengths["limit"], tail)
    return findings


def cut_texts(field: str, cut: int, texts: int, limit: int, tail: str = "") -> list[Finding]:
    """Reports the texts of a field that are longer than `limit` tokens. tail: describes the lengths, if known."""
    if not cut:
        return []
    text = f"{cut:,} of {texts:,} {field} texts are cut at {limit:,} tokens{tail}"
    key = "model.query_max_len" if field == "query" else "model.passage_max_len"
    return [Finding("truncation", "warning", cut, texts, text, f"the run file's {key} sets this length", key)]


def imbalance(sources: dict[str, int], mend: str) -> list[Finding]:
    """Finds small sources. sources: {name: rows}."""
    total = sum(sources.values())
    small = {name: rows for name, rows in sources.items() if rows < SMALL_SOURCE * total}
    if not small:
        return []
    listed = ", ".join(f"{name!r} {rows:,}" for name, rows in sorted(small.items(), key=lambda one: one[1])[:5])
    text = f"{len(small)} of {len(sources)} sources hold less than 1 % of the {total:,} rows each: {listed}"
    return [Finding("source_imbalance", "warning", len(small), len(sources), text, mend)]


def unreadable(empty: int, other: int, rows: int) -> list[Finding]:
    """Reports rows of an input that cannot be read as records."""
    named = (("empty_texts", empty, "have an empty text"), ("unreadable_rows", other, "cannot be read as records"))
    return [
        Finding(name, "error", count, rows, f"{count:,} of {rows:,} rows {what}", "compose --skip-bad sets them aside")
        for name, count, what in named
        if count
    ]


def of_sample(findings: list[Finding], looked_at: int, rows: int) -> list[Finding]:
    """Adds to findings of a sample that they were counted on `looked_at` of `rows` rows."""
    if looked_at >= rows:
        return findings
    sampled = f", in a sample of {looked_at:,} of {rows:,} rows"
    return [replace(finding, text=finding.text + sampled) for finding in findings]


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sorts errors before warnings, otherwise stable."""
    return sorted(findings, key=lambda finding: finding.severity != "error")
