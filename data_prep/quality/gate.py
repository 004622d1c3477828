"""The gate of a training run: checks a shard folder before anything trains on it.

- The manifest is trusted: no exact duplicates, no text or document in two splits. `shard` records the findings that
  depend on the rows alone (`of_rows`).
- Everything else is checked once and cached, by the fingerprints of data, evaluation sets, tokenizer and prompts.
- The cost is bounded: keys of at most SCAN_ROWS rows (only with hard negatives or another evaluation set), and SAMPLE
  rows for every estimate.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.console import say, track
from data_prep.common.errors import Failed
from data_prep.common.files import cache_folder, sha256_of, whole_file
from data_prep.quality import checks
from data_prep.quality.checks import AT_ONCE, Finding
from data_prep.quality.decontaminate import HeldOut, held_out, texts_of
from data_prep.quality.row_keys import Keys
from data_prep.quality.sampling import evenly, spread
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from data_prep.records import Record
from data_prep.remote.copies import local
from data_prep.shards.folder import MANIFEST, Rows, ShardFolder, open_shards
from data_prep.texts.near_duplicates import SIMILARITY
from data_prep.texts.token_lengths import Reader, has_tokenizer, token_lengths

VERSION = 2  # of the checks; part of the cache key
SCAN_ROWS = 2_000_000
SAMPLE = 5_000
NEAR_ROWS = 20_000
HELD_TEXTS = 20_000  # texts of an evaluation set, and rows of an eval split, that are compared for near duplicates


@dataclass(frozen=True)
class Gate:
    """The checks of one run."""

    shards: ShardFolder
    evals: dict[str, str]  # key of the run file -> evaluation set
    reader: Reader
    mixing_mend: str | None = None  # mend for small sources; None: small shares are intended
    sets: dict[str, RetrievalSet | ScoredPairs] = field(default_factory=dict)  # those that are read already, by path

    def findings(self) -> list[Finding]:
        """Returns all findings, errors first; from the cache if nothing changed."""
        stored = cache_folder("gate") / f"{self._key()}.json"
        with suppress(OSError, ValueError, TypeError, KeyError):
            listed = json.loads(stored.read_text(encoding="utf-8"))["findings"]
            return [Finding.of_json(one) for one in listed]
        findings = checks.sorted_findings(self._look())
        with suppress(OSError, Failed), whole_file(stored) as file:  # Failed: another process writes the same there
            json.dump({"train": str(self.shards.path), "findings": [one.to_json() for one in findings]}, file)
        return findings

    def _key(self) -> str:
        evals = {key: _content(path, self.sets) for key, path in self.evals.items()}
        tokenizer = sha256_of(Path(self.reader.folder) / "tokenizer.json") if has_tokenizer(self.reader.folder) else ""
        parts = [VERSION, self.shards.fingerprint, evals, tokenizer, astuple(self.reader.rules), self.mixing_mend]
        parts += [self.reader.own_prompts.for_manifest()] if self.reader.own_prompts else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _look(self) -> list[Finding]:
        rows = self.shards.split("train")
        sets = {
            key: held_out([path], where=f"{key}:", sets=self.sets)
            for key, path in self.evals.items()
            if _content(path, self.sets) != self.shards.fingerprint  # its own eval split shares nothing with it
        }
        findings = self._exact(rows, sets)
        sources, sample, records = _sample(self.shards, rows)
        recorded = self.shards.manifest.get("findings", {})
        if recorded.get("version") == VERSION:
            findings += [Finding.of_json(one) for one in recorded["found"]]
        else:
            findings += of_rows(self.shards)
        estimated = []
        for key, whole in sets.items():
            path = self.evals[key]
            estimated += checks.near_leakage(records, nearly(whole), path, key, checks.leave_out(path, SIMILARITY))
        estimated += checks.prompts(sample, self.reader)
        findings += checks.of_sample(estimated, len(records), len(rows))
        findings += self._truncation(rows, records)
        if self.mixing_mend is not None:
            findings += checks.imbalance({name: len(ids) for name, ids in sources.items()}, self.mixing_mend)
        return findings

    def _truncation(self, rows: Rows, records: list[Record]) -> list[Finding]:
        """Counts truncated texts: by the shards' tokens if their maximum lengths are this run's, else on the sample."""
        rules, tokens = self.reader.rules, self.shards.manifest["tokenizer"]
        if tokens and all(tokens[name] == getattr(rules, name) for name in ("query_max_len", "passage_max_len")):
            queries = self.shards.rows("train")
            passages = tokens["texts"] - queries
            findings = checks.cut_texts("query", tokens["cut_queries"], queries, rules.query_max_len)
            return findings + checks.cut_texts("passage", tokens["cut_passages"], passages, rules.passage_max_len)
        if has_tokenizer(self.reader.folder):
            table, measured = token_lengths(self.reader, records)
            return checks.of_sample(checks.truncation(table), measured, len(rows))
        say(f"note: {self.reader.folder} has no tokenizer.json, so the gate does not count what is cut")
        return []

    def _exact(self, rows: Rows, sets: dict[str, HeldOut]) -> list[Finding]:
        """Runs the checks that need the keys of all rows."""
        if not sets and not rows.count("negatives"):
            return []
        keys = scan(rows)
        findings = checks.texts_of_rows(keys)
        for key, whole in sets.items():
            path, keys_held = self.evals[key], np.fromiter(whole.keys, np.int64)
            findings += checks.leakage(keys, len(keys), keys_held, path, key, checks.leave_out(path))
        return checks.of_sample(findings, len(keys), len(rows))


def of_rows(shards: ShardFolder) -> list[Finding]:
    """Findings that depend on the rows alone: near duplicates, languages, markup, and train rows near those of eval."""
    rows = shards.split("train")
    _, sample, records = _sample(shards, rows)
    estimated = [*checks.languages(sample)[0], *checks.markup(sample)]
    if "eval" in shards.splits:
        eval_texts = HeldOut()
        eval_texts.add("eval", *texts_of(_spaced(shards.split("eval"), HELD_TEXTS)))
        mend = "they flatter the metrics; --split-by FIELD keeps whole groups of rows on one side"
        estimated += checks.near_leakage(records, nearly(eval_texts), "the eval split", "data.train", mend)
    return _near_duplicates(shards, rows) + checks.of_sample(estimated, len(records), len(rows))


def _sample(shards: ShardFolder, rows: Rows) -> tuple[dict[str, Any], dict[str, list[Record]], list[Record]]:
    """Returns the row numbers of every source, about SAMPLE train rows by source, and the sample as one list."""
    sources = {source.name: source.rows for source in shards.train_sources()}
    sample = {name: rows.take(ids.tolist()) for name, ids in spread(sources, SAMPLE).items()}
    return sources, sample, [record for some in sample.values() for record in some]


def _near_duplicates(shards: ShardFolder, rows: Rows) -> list[Finding]:
    removed = shards.manifest.get("near_duplicates")
    if removed and removed["similarity"] <= SIMILARITY:
        return []
    chosen = evenly(len(rows), NEAR_ROWS).tolist()
    findings, _ = checks.near_duplicates(rows.take, chosen, SIMILARITY)
    return checks.of_sample(findings, len(chosen), len(rows))


def nearly(whole: HeldOut) -> HeldOut:
    """Returns the texts, or HELD_TEXTS evenly spaced ones, in an index that matches near duplicates too."""
    texts = list(whole.keys.values())
    sampled = HeldOut(SIMILARITY)
    for text in texts[:: max(1, -(-len(texts) // HELD_TEXTS))]:
        sampled.add(text.name, [text.text], [])
    return sampled


def scan(rows: Rows) -> Keys:
    """Reads the keys of the rows, or of SCAN_ROWS evenly spaced ones."""
    keys = Keys()
    for record in track(_spaced(rows, SCAN_ROWS), "gate: reading the train rows", total=min(len(rows), SCAN_ROWS)):
        keys.add(record)
    return keys


def _spaced(rows: Rows, most: int) -> Iterable[Record]:
    """Returns the rows, or `most` evenly spaced ones, to be read one after the other."""
    if len(rows) <= most:
        return rows
    ids = evenly(len(rows), most)
    parts = (ids[start : start + AT_ONCE].tolist() for start in range(0, len(ids), AT_ONCE))
    return chain.from_iterable(map(rows.take, parts))


def _content(path: str, sets: dict[str, RetrievalSet | ScoredPairs]) -> Any:
    """Identifies the content of an evaluation set by hashes. sets: those that are read already, by path."""
    if path in sets and sets[path].shards:
        return sets[path].shards.fingerprint
    path = local(path)
    if (path / MANIFEST).is_file():
        return open_shards(path).fingerprint
    if path.is_file():  # scored pairs
        return sha256_of(path)
    files = ("corpus.jsonl", "queries.jsonl", "qrels.tsv", "qrels/test.tsv")
    return {name: sha256_of(path / name) for name in files if (path / name).is_file()}
