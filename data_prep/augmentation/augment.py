"""Variants of records with a query as other people would write it: typos, synonyms, case, signs, script.

- A variant has the positives, negatives and metadata of its parent, a changed query, and an id of its own.
- Its metadata has `parent` (the parent's id), `parent_query` (its query) and `augmented` (the kinds of changes).
- It shares positives and query_key (records.py) with its parent. So `shard` puts both into one split, the batch plan
  keeps them apart, and a positive of the one is never a negative of the other.
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
    columns: dict[str, str] | None = None,
) -> int:
    """Writes every record of the inputs, each followed by up to `variants` variants; returns the number of variants.

    score_scale: a variant's score is its parent's times this. Draws depend on the seed and the parent's query and
    positives alone. A variant never equals one of its positives, or a query or variant of a record with another query:
    a row gets fewer variants where TRIES draws give no other text. Rows that are variants already are copied. Both are
    counted. Rows wait on disk; memory holds a key for each query and variant (100 bytes). Raises BadInput with every
    problem.
    """
    problems = check_output_file(output, inputs) + changes.problems()
    if variants < 1:
        problems.append(f"--variants {variants}: must be 1 or more")
    if not 0 <= score_scale <= 1:
        problems.append(f"--score-scale {score_scale:g}: must be in 0..1")
    problems += _idle(changes, misspellings, synonyms)
    writer = Writer(changes, *_lists(misspellings, synonyms, problems))
    check(problems)
    with spool_beside(output) as spool, whole_file(output) as lines:
        queries, rows, scored = _spool(inputs, spool, positive, columns)
        counts = _Counts(variants)
        spool.seek(0)
        for record in track((Record(**json.loads(line)) for line in spool), "variants", total=rows):
            lines.write(record.to_json() + "\n")
            if is_variant(record):
                counts.copied += 1
                continue
            for variant in _variants_of(record, variants, writer, queries, seed, counts):
                if variant.score is not None:
                    variant.score *= score_scale
                lines.write(variant.to_json() + "\n")
        if not counts.kinds:
            state = f"{counts.copied:,} are variants already, the others hold nothing to change"
            raise BadInput(f"no variant from {rows:,} rows: {state}")
    if score_scale != 1 and not scored:
        say("note: no row has a score, so --score-scale changed nothing")
    counts.report(output, rows)
    return counts.variants


def _idle(changes: Changes, misspellings: Path | None, synonyms: Path | None) -> list[str]:
    problems = []
    if misspellings and not changes.typo_rate:
        problems.append("--misspellings is given, but --typo-rate is 0, so none would be used")
    if synonyms and not changes.synonym_rate:
        problems.append("--synonyms is given, but --synonym-rate is 0, so none would be used")
    rates = (changes.typo_rate, changes.case_rate, changes.punctuation_rate, changes.transliteration_rate)
    if not any(rates) and not synonyms:
        problems.append("nothing to change: every rate is 0")
    return problems


def _lists(misspellings: Path | None, synonyms: Path | None, problems: list[str]) -> list[Phrases | None]:
    """Reads both lists; None for one that is not given, or bad."""
    lists = []
    for path, read in ((misspellings, read_misspellings), (synonyms, read_synonyms)):
        try:
            lists.append(read(path) if path else None)
        except BadInput as error:
            problems += error.problems
            lists.append(None)
    return lists


def _spool(
    inputs: list[Path], spool: IO[str], positive: str | None, columns: dict[str, str] | None
) -> tuple[dict[int, int], int, int]:
    """Writes all records to the spool. Returns (key of each query -> its row's query_key, rows, rows with a score)."""
    problems = Problems()
    queries: dict[int, int] = {}
    rows = scored = 0
    for path, name in source_names(inputs).items():
        records = read_records(path, positive=positive, columns=columns, source=name, problems=problems)
        for record in track(records, f"reading {path.name}"):
            used = [key for key in (PARENT, PARENT_QUERY, AUGMENTED) if key in record.metadata]
            if used and not is_variant(record):
                names = f"its metadata has {', '.join(map(repr, used))}, names that variants need"
                problems.file(f"{path}: record {record.id}: {names}; rename the field")
            queries.setdefault(text_key(record.query), query_key(record))
            rows += 1
            scored += record.score is not None
            spool.write(record.to_json() + "\n")
    problems.check()
    return queries, rows, scored


@dataclass
class _Counts:
    """Counts for the last line."""

    wanted: int  # variants of each row
    variants: int = 0
    copied: int = 0  # rows that are variants already
    fewer: int = 0  # rows with fewer variants than wanted
    none: int = 0  # of these, rows without any
    kinds: Counter[str] = field(default_factory=Counter)  # kind of change -> times

    def report(self, output: Path, rows: int) -> None:
        if self.copied:
            say(f"{self.copied:,} rows are variants already: copied as they are")
        if self.fewer:
            why = "no other text was found that is no other row's query"
            say(f"{self.fewer:,} rows got fewer than {self.wanted} variants ({self.none:,} none): {why}")
        each = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        result(f"{output}: {rows:,} rows and {self.variants:,} variants ({each})")


def _variants_of(
    record: Record, wanted: int, writer: Writer, queries: dict[int, int], seed: int, counts: _Counts
) -> Iterator[Record]:
    """Yields the record's variants. queries: text key -> query_key of the row it belongs to; new texts are added."""
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
        counts.kinds.update(kinds)
        marks = {PARENT: record.id, PARENT_QUERY: record.query, AUGMENTED: sorted(set(kinds))}
        yield replace(record, query=text, id=f"{record.id}~{len(texts) - 1}", metadata=record.metadata | marks)
        if len(texts) > wanted:
            break
    variants = len(texts) - 1
    counts.variants += variants
    counts.fewer += variants < wanted
    counts.none += not variants
