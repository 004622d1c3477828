"""Variants of records whose query is written as other people would write it: typos, synonyms, case, signs, script.

A variant has the positives, negatives and metadata of its parent, a changed query, an id of its own, and in its
metadata `parent` (the parent's id), `parent_query` (its query) and `augmented` (what was changed). It shares its
positives and its parent's query with the parent: so `shard` puts both into one split, the batch plan keeps them apart,
and what is a positive of the one is never a negative of the other (records.query_key).
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from data_prep.augmentation.phrases import Phrases, read_misspellings, read_synonyms
from data_prep.augmentation.rewriting import Changes, Writer
from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file, spool_beside, whole_file
from data_prep.reading.formats import read_records, source_names
from data_prep.reading.row_problems import Problems
from data_prep.records import PARENT, PARENT_QUERY, Record, is_variant, query_key, text_key

AUGMENTED = "augmented"
TRIES = 40  # draws for one variant until it differs from all others


def augment(
    inputs: list[Path],
    output: Path,
    *,
    changes: Changes,
    variants: int = 1,
    misspellings: Path | None = None,
    synonyms: Path | None = None,
    score_scale: float = 1.0,
    seed: int = 0,
    positive: str | None = None,
) -> int:
    """Writes every record of the inputs, each followed by up to `variants` variants; returns the number of variants.

    score_scale: a variant's score is its parent's times this. Draws depend on the seed and the parent's query and
    positives alone. A variant is never a query or variant of a record with another query, nor one of its own positives:
    where TRIES draws give no other text the row gets fewer. That and rows that are variants already, which are copied,
    is counted. Rows wait on disk; a key for each query and variant (100 bytes) is held in memory. BadInput: everything
    wrong, listed.
    """
    found = check_output_file(output, inputs) + changes.problems()
    if variants < 1:
        found.append(f"--variants {variants}: must be 1 or more")
    if not 0 <= score_scale <= 1:
        found.append(f"--score-scale {score_scale:g}: must be in 0..1")
    found += _idle(changes, misspellings, synonyms)
    listed, alike = _lists(misspellings, synonyms, found)
    check(found)
    writer = Writer(changes, listed, alike)
    with spool_beside(output) as spool, whole_file(output) as lines:
        queries, rows, scored = _spool(inputs, spool, positive)
        made = _Made(variants)
        for record in track(_spooled(spool), "variants", total=rows):
            lines.write(record.to_json() + "\n")
            if is_variant(record):
                made.copied += 1
                continue
            for variant in _variants_of(record, variants, writer, queries, seed, made):
                if variant.score is not None:
                    variant.score *= score_scale
                lines.write(variant.to_json() + "\n")
        if not made.kinds:
            state = f"{made.copied:,} are variants already, the others hold nothing to change"
            raise BadInput(f"no variant from {rows:,} rows: {state}")
    if score_scale != 1 and not scored:
        say("note: no row has a score, so --score-scale changed nothing")
    made.tell(output, rows)
    return made.count


def _idle(changes: Changes, misspellings: Path | None, synonyms: Path | None) -> list[str]:
    """Flags that would change nothing."""
    found = []
    if misspellings and not changes.typo_rate:
        found.append("--misspellings is given, but --typo-rate is 0, so none would be used")
    if synonyms and not changes.synonym_rate:
        found.append("--synonyms is given, but --synonym-rate is 0, so none would be used")
    rates = (changes.typo_rate, changes.case_rate, changes.punctuation_rate, changes.transliteration_rate)
    if not any(rates) and not synonyms:
        found.append("nothing to change: every rate is 0")
    return found


def _lists(misspellings: Path | None, synonyms: Path | None, found: list[str]) -> list[Phrases | None]:
    lists = []
    for path, read in ((misspellings, read_misspellings), (synonyms, read_synonyms)):
        try:
            lists.append(read(path) if path else None)
        except BadInput as error:
            found += error.problems
            lists.append(None)
    return lists


def _spool(inputs: list[Path], spool: IO[str], positive: str | None) -> tuple[dict[int, int], int, int]:
    """Writes all records to the spool: (key of every query -> query_key of its row, rows, rows with a score)."""
    problems = Problems()
    queries: dict[int, int] = {}
    rows = scored = 0
    for path, name in source_names(inputs).items():
        for record in track(
            read_records(path, positive=positive, source=name, problems=problems), f"reading {path.name}"
        ):
            taken = [key for key in (PARENT, PARENT_QUERY, AUGMENTED) if key in record.metadata]
            if taken and not is_variant(record):
                problems.file(
                    f"{path}: record {record.id}: its metadata has {', '.join(map(repr, taken))}, names that variants "
                    "need; rename the field"
                )
            queries.setdefault(text_key(record.query), query_key(record))
            rows += 1
            scored += record.score is not None
            spool.write(record.to_json() + "\n")
    problems.check()
    return queries, rows, scored


def _spooled(spool: IO[str]) -> Iterator[Record]:
    spool.seek(0)
    yield from (Record(**json.loads(line)) for line in spool)


@dataclass
class _Made:
    """Counts for the last line."""

    wanted: int
    count: int = 0
    copied: int = 0
    fewer: int = 0  # rows with fewer variants than wanted
    none: int = 0  # of these, rows without any
    kinds: Counter[str] = field(default_factory=Counter)

    def tell(self, output: Path, rows: int) -> None:
        if self.copied:
            say(f"{self.copied:,} rows are variants already: copied as they are")
        if self.fewer:
            say(
                f"{self.fewer:,} rows got fewer than {self.wanted} variants ({self.none:,} none): no other text was "
                "found that is no other row's query"
            )
        each = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        result(f"{output}: {rows:,} rows and {self.count:,} variants ({each})")


def _variants_of(
    record: Record, wanted: int, writer: Writer, queries: dict[int, int], seed: int, made: _Made
) -> Iterator[Record]:
    own = query_key(record)
    positives = {text_key(text) for text in record.positives}
    texts = {record.query}
    named = json.dumps([seed, record.query, record.positives])
    digest = hashlib.blake2b(named.encode(), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "big"))
    for _ in range(TRIES * wanted):
        text, kinds = writer.rewrite(record.query, draw)
        key = text_key(text)
        if not kinds or text in texts or key in positives or queries.setdefault(key, own) != own:
            continue
        texts.add(text)
        made.kinds.update(kinds)
        marks = {PARENT: record.id, PARENT_QUERY: record.query, AUGMENTED: sorted(set(kinds))}
        yield replace(record, query=text, id=f"{record.id}~{len(texts) - 1}", metadata=record.metadata | marks)
        if len(texts) > wanted:
            break
    count = len(texts) - 1
    made.count += count
    made.fewer += count < wanted
    made.none += not count
