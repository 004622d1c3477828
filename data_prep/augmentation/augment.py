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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

from data_prep.augmentation.phrases import Phrases, read_misspellings, read_synonyms
from data_prep.augmentation.rewriting import Changes, Writer
from data_prep.cluster.open import open_workers, problems_of
from data_prep.common.console import result, say, track
from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file, spool_beside, whole_file
from data_prep.common.workers import batches
from data_prep.reading.formats import read_records, source_names
from data_prep.reading.row_problems import Problems
from data_prep.records import PARENT, PARENT_QUERY, Record, is_variant, query_key, text_key

AUGMENTED = "augmented"
TRIES = 40  # draws for one variant until it differs from all others
TASK_ROWS = 1000


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
    workers: int = 1,
    on: str | None = None,
) -> int:
    """Writes every record of the inputs, each followed by up to `variants` variants; returns the number of variants.

    score_scale: a variant's score is its parent's times this. Draws depend on the seed and the parent's query and
    positives alone. A variant never equals one of its positives, or a query or variant of a record with another query:
    a row gets fewer variants where TRIES draws give no other text. Rows that are variants already are copied. Both are
    counted. Rows wait on disk; memory holds a key for each query and variant (100 bytes). workers, on: who draws, see
    cluster.open_workers; which variants stay is decided here, so the lines do not depend on it. Raises BadInput with
    every problem.
    """
    problems = check_output_file(output, [*inputs, misspellings, synonyms])
    problems += changes.problems() + problems_of(workers, on)
    if variants < 1:
        problems.append(f"--variants {variants}: must be 1 or more")
    if not 0 <= score_scale <= 1:
        problems.append(f"--score-scale {score_scale:g}: must be in 0..1")
    problems += _idle(changes, misspellings, synonyms)
    writer = Writer(changes, *_lists(misspellings, synonyms, problems))
    check(problems)
    with open_workers(workers, on) as pool, spool_beside(output) as spool, whole_file(output) as lines:
        queries, rows, scored = _spool(inputs, spool, positive, columns)
        counts = _Counts(variants)
        spool.seek(0)
        records = (Record(**json.loads(line)) for line in spool)
        tasks = (_DraftTask(batch, variants, writer, seed) for batch in batches(records, TASK_ROWS))
        drafted = chain.from_iterable(pool.map(_draft, tasks))
        for record, drafts in track(drafted, "variants", total=rows, note=pool.note):
            lines.write(record.to_json() + "\n")
            if is_variant(record):
                counts.copied += 1
                continue
            texts = iter(drafts)
            if len(drafts) == variants:  # fewer: there are no others
                texts = chain(drafts, islice(_drafts(record, variants, writer, seed), len(drafts), None))
            for variant in _variants_of(record, variants, texts, queries, counts):
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


class _DraftTask(NamedTuple):
    """Records whose queries are to be rewritten."""

    records: list[Record]
    wanted: int  # variants of each
    writer: Writer
    seed: int


Draft = tuple[str, list[str]]  # a changed query, and the kinds of its changes


def _draft(task: _DraftTask) -> list[tuple[Record, list[Draft]]]:
    """Returns the records with their first `wanted` drafts; none for variants."""
    return [
        (record, [] if is_variant(record) else list(islice(_drafts(record, *task[1:]), task.wanted)))
        for record in task.records
    ]


def _drafts(record: Record, wanted: int, writer: Writer, seed: int) -> Iterator[Draft]:
    """Yields different changed queries of TRIES * wanted draws. They depend on seed, query and positives alone."""
    positives = {text_key(text) for text in record.positives}
    texts = {record.query}
    named = json.dumps([seed, record.query, record.positives])
    digest = hashlib.blake2b(named.encode(), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "big"))
    for _ in range(TRIES * wanted):
        text, kinds = writer.rewrite(record.query, draw)
        if kinds and text not in texts and text_key(text) not in positives:
            texts.add(text)
            yield text, kinds


def _variants_of(
    record: Record, wanted: int, drafts: Iterable[Draft], queries: dict[int, int], counts: _Counts
) -> Iterator[Record]:
    """Yields the record's variants. queries: text key -> query_key of the row it belongs to; new texts are added."""
    own, variants = query_key(record), 0
    for text, kinds in drafts:
        if queries.setdefault(text_key(text), own) != own:
            continue
        variants += 1
        counts.kinds.update(kinds)
        marks = {PARENT: record.id, PARENT_QUERY: record.query, AUGMENTED: sorted(set(kinds))}
        yield replace(record, query=text, id=f"{record.id}~{variants}", metadata=record.metadata | marks)
        if variants == wanted:
            break
    counts.variants += variants
    counts.fewer += variants < wanted
    counts.none += not variants
