"""What can be wrong with rows that are each well-formed, one function per check; gate.py and inspect.py put them together.

A check gives findings, and some a table for people as well. Those over Keys are exact for the rows that were read;
those over records are as good as the sample they are given.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.decontaminate import HeldOut
from data_prep.languages import UNSURE, language
from data_prep.near_duplicates import NearDuplicates
from data_prep.records import Record
from data_prep.survey import Keys

NO_TRAINING = ("leakage", "positives_as_negatives")  # findings that refuse a run unless `data.allow` lists them
SHOWN = 3  # ids of a finding
NOT_A_LANGUAGE = "zxx"
OTHER_LANGUAGE = 0.01  # share of a source's positives from which other languages are told
SMALL_SOURCE = 0.01  # share of all rows below which a source is told
COMMON_START = 0.5  # share of a source's texts from which a common start counts as a prompt
_START = re.compile(r"[^\n:]{1,40}:\s")


@dataclass(frozen=True)
class Finding:
    """Something wrong with `count` of `of` rows (or texts). severity: "error" (training is refused) or "warning".
    about: the key of the run file or the flag that it concerns. text: one line. mend: what to do, "" if nothing is
    wrong in itself. ids: some of the rows."""

    name: str
    severity: str
    count: int
    of: int
    text: str
    mend: str = ""
    about: str = ""
    ids: tuple[str, ...] = ()

    def line(self) -> str:
        """For people: what, examples, mend."""
        shown = f" ({', '.join(self.ids)}{' …' if self.count > len(self.ids) else ''})" if self.ids else ""
        return f"{self.name}: {self.text}{shown}" + (f"; {self.mend}" if self.mend else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def finding(name: str, keys: Keys, rows: Any, text: str, mend: str = "", about: str = "") -> list[Finding]:
    """A finding about these rows; none where there are none. `text` may hold {count} and {of}."""
    if not len(rows):
        return []
    severity = "error" if name in NO_TRAINING else "warning"
    said = text.format(count=f"{len(rows):,}", of=f"{len(keys):,}")
    ids = tuple(keys.ids[row] for row in rows[:SHOWN].tolist())
    return [Finding(name, severity, len(rows), len(keys), said, mend, about, ids)]


def leakage(keys: Keys, held: Any, name: str, about: str, mend: str) -> list[Finding]:
    """Rows that hold a text of an evaluation set. held: the keys of its texts, int64."""
    import numpy as np

    queries, positives = keys.holding(held)
    sides = f"{len(queries):,} by their query, {len(positives):,} by a positive"
    text = f"{{count}} of {{of}} rows hold a query or relevant document of {name}: {sides}".replace("{name}", name)
    return finding("leakage", keys, np.union1d(queries, positives), text, mend, about)


def texts_of_rows(keys: Keys) -> list[Finding]:
    """Positives listed as negatives, and queries that are their own positive."""
    return finding(
        "positives_as_negatives",
        keys,
        keys.positives_as_negatives(),
        "{count} of {of} rows have a negative that is a positive of their query",
        "take it out of their negatives",
    ) + finding(
        "equal_texts",
        keys,
        keys.equal_texts(),
        "{count} of {of} rows have a query that is one of their positives",
        "they teach nothing but to copy",
    )


def duplicates(keys: Keys) -> list[Finding]:
    text = "{count} of {of} rows have the query and positives of an earlier row"
    return finding("duplicates", keys, keys.duplicates(), text, "shard removes them")


def near_duplicates(records: list[Record], similarity: float) -> tuple[list[Finding], dict[str, Any]]:
    """records: rows without exact duplicates among them."""
    index = NearDuplicates(similarity)
    for record in records:
        index.add(record)
    rows = index.find(lambda numbers: [records[number] for number in numbers]).nonzero()[0].tolist()
    table = {"similarity": similarity, "rows": len(rows), "of": len(records), "unsure": index.unsure}
    if not rows:
        return [], table
    text = f"{len(rows):,} of {len(records):,} rows are near duplicates of another one (Jaccard {similarity:g} or more)"
    mend = "shard --near-duplicates removes them"
    ids = tuple(records[row].id for row in rows[:SHOWN])
    return [Finding("near_duplicates", "warning", len(rows), len(records), text, mend, ids=ids)], table


def near_leakage(records: list[Record], held: HeldOut, name: str, about: str) -> list[Finding]:
    """Rows that hold nearly a text of an evaluation set; those that hold it exactly are another finding."""
    found = [(record, match) for record, match in zip(records, held.matches(records)) if match]
    near = [record.id for record, match in found if match.similarity < 1]
    if not near:
        return []
    text = f"{len(near):,} of {len(records):,} rows hold a near duplicate (Jaccard {held.near:g} or more) of a text of {name}"
    return [Finding("near_leakage", "warning", len(near), len(records), text, "", about, tuple(near[:SHOWN]))]


def languages(records: dict[str, list[Record]]) -> tuple[list[Finding], dict[str, Any]]:
    """records: of each source. The table: {source: {"query": {language: texts}, "positive": …, "differ": rows}};
    differ: query and positive are of different languages."""
    found, table = [], {}
    for source, rows in records.items():
        queries = [language(record.query) for record in rows]
        positives = [language(record.positives[0]) for record in rows]
        known = [{one, other}.isdisjoint({UNSURE, NOT_A_LANGUAGE}) for one, other in zip(queries, positives)]
        differ = [row for row, one, other, sure in zip(rows, queries, positives, known) if sure and one != other]
        table[source] = {
            "query": dict(Counter(queries).most_common()),
            "positive": dict(Counter(positives).most_common()),
            "differ": len(differ),
        }
        found += _other_languages(source, rows, positives)
        if differ:
            text = f"{len(differ):,} of {len(rows):,} rows of {source!r} have query and positive in different languages"
            ids = tuple(record.id for record in differ[:SHOWN])
            found.append(Finding("languages_differ", "warning", len(differ), len(rows), text, ids=ids))
    return found, table


def _other_languages(source: str, rows: list[Record], positives: list[str]) -> list[Finding]:
    counts = Counter(found for found in positives if found not in (UNSURE, NOT_A_LANGUAGE))
    if not counts:
        return []
    most = counts.most_common(1)[0][0]
    others = counts.total() - counts[most]
    if others < OTHER_LANGUAGE * counts.total():
        return []
    shares = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(5))
    text = f"{others:,} of {len(rows):,} positives of {source!r} are not in its main language ({shares})"
    ids = [row.id for row, found in zip(rows, positives) if found not in (UNSURE, NOT_A_LANGUAGE, most)]
    return [Finding("languages", "warning", others, len(rows), text, ids=tuple(ids[:SHOWN]))]


def prompts(records: dict[str, list[Record]], query_prompt: str, passage_prompt: str) -> list[Finding]:
    """Texts that begin with the prompt that will be put before them, and sources whose texts share a start like one."""
    found = []
    for source, rows in records.items():
        sides = (("query", query_prompt, [row.query for row in rows]),
                 ("passage", passage_prompt, [text for row in rows for text in row.positives]))  # fmt: skip
        for side, prompt, texts in sides:
            already = sum(text.startswith(prompt.rstrip()) for text in texts) if prompt.strip() else 0
            if already:
                text = f"{already:,} of {len(texts):,} {side} texts of {source!r} begin with the prompt {prompt!r} already"
                mend = f"take it out of the texts, or set model.{side}_prompt to ''"
                found.append(Finding("prompts", "warning", already, len(texts), text, mend, f"model.{side}_prompt"))
                continue
            starts = Counter(match.group().lower() for text in texts if (match := _START.match(text)))
            start, count = starts.most_common(1)[0] if starts else ("", 0)
            if count >= max(COMMON_START * len(texts), 20):
                text = f"{count:,} of {len(texts):,} {side} texts of {source!r} begin with {start!r}"
                mend = f"if that is a prompt, it belongs in model.{side}_prompt"
                found.append(Finding("prompts", "warning", count, len(texts), text, mend, f"model.{side}_prompt"))
    return found


def truncation(table: dict[str, Any]) -> list[Finding]:
    """table: see tokens.token_lengths."""
    found = []
    for field, of in table.items():
        if of["cut"]:
            key = "model.query_max_len" if field == "query" else "model.passage_max_len"
            tail = f"median {of['p50']:,}, 99 % up to {of['p99']:,}, longest {of['max']:,}"
            text = f"{of['cut']:,} of {of['texts']:,} {field} texts are longer than {of['limit']:,} tokens and are cut ({tail})"
            found.append(Finding("truncation", "warning", of["cut"], of["texts"], text, about=key))
    return found


def imbalance(sources: dict[str, int], mend: str) -> list[Finding]:
    """sources: rows of each."""
    total = sum(sources.values())
    small = {name: rows for name, rows in sources.items() if rows < SMALL_SOURCE * total}
    if not small:
        return []
    listed = ", ".join(f"{name!r} {rows:,}" for name, rows in sorted(small.items(), key=lambda one: one[1])[:5])
    text = f"{len(small)} of {len(sources)} sources hold less than 1 % of the {total:,} rows each: {listed}"
    return [Finding("source_imbalance", "warning", len(small), len(sources), text, mend)]


def unreadable(empty: int, other: int, rows: int) -> list[Finding]:
    """Rows of an input that cannot be read as records."""
    named = (("empty_texts", empty, "have an empty text"), ("unreadable_rows", other, "cannot be read as records"))
    return [
        Finding(name, "error", count, rows, f"{count:,} of {rows:,} rows {what}", "compose --skip-bad sets them aside")
        for name, count, what in named
        if count
    ]


def sorted_findings(found: Iterable[Finding]) -> list[Finding]:
    """Errors first, otherwise as they came."""
    return sorted(found, key=lambda one: one.severity != "error")
