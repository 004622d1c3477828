"""The gate of a training run: what is known to be wrong with a shard folder before anything trains on it.

What the manifest says is not counted again: a shard folder holds no exact duplicate and shares no text or document
between its splits, and `shard` records what its rows alone tell (`of_rows`). Everything else is looked at once and kept
in a cache under the fingerprints of the data, the evaluation sets, the tokenizer and the prompts. Cost, whatever the
size of the data: the keys of at most SCAN_ROWS rows (where there are hard negatives or another evaluation set only),
and SAMPLE rows for everything that is estimated.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.common.console import say, track
from data_prep.common.files import sha256_of, whole_file
from data_prep.quality import checks
from data_prep.quality.checks import AT_ONCE, Finding
from data_prep.quality.decontaminate import HeldOut, held_out, texts_of
from data_prep.quality.row_keys import Keys
from data_prep.quality.sampling import spread
from data_prep.records import Record
from data_prep.shards.folder import MANIFEST, Rows, ShardFolder, open_shards
from data_prep.texts.near_duplicates import SIMILARITY
from data_prep.texts.token_lengths import Reader, has_tokenizer, token_lengths

VERSION = 1  # of what is counted; another one is another cache entry
SCAN_ROWS = 2_000_000
SAMPLE = 5_000
NEAR_ROWS = 20_000
HELD_TEXTS = 20_000  # of an evaluation set that near duplicates are looked for among


@dataclass(frozen=True)
class Gate:
    """What a run is to be checked for. evals: evaluation sets by the key of the run file that names them. mixing_mend:
    what to say of small sources; None: their shares are wanted."""

    shards: ShardFolder
    evals: dict[str, str]
    reader: Reader
    mixing_mend: str | None = None

    def findings(self) -> list[Finding]:
        """Errors first. From the cache where everything is as it was."""
        stored = _cache_folder() / f"{self._key()}.json"
        with suppress(OSError, ValueError, TypeError, KeyError):
            listed = json.loads(stored.read_text(encoding="utf-8"))["findings"]
            return [Finding.of_json(one) for one in listed]
        found = checks.sorted_findings(self._look())
        with suppress(OSError), whole_file(stored) as file:
            json.dump({"train": str(self.shards.path), "findings": [one.to_json() for one in found]}, file)
        return found

    def _key(self) -> str:
        evals = {key: _content(Path(path)) for key, path in self.evals.items()}
        tokenizer = sha256_of(Path(self.reader.folder) / "tokenizer.json") if has_tokenizer(self.reader.folder) else ""
        parts = [VERSION, self.shards.fingerprint, evals, tokenizer, astuple(self.reader.rules), self.mixing_mend]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _look(self) -> list[Finding]:
        rows = self.shards.split("train")
        sets = {
            key: held_out([path], where=f"{key}:")
            for key, path in self.evals.items()
            if _content(Path(path)) != self.shards.fingerprint  # its own eval split shares nothing with it
        }
        found = self._exact(rows, sets)
        sources, sample, records = _sample(self.shards, rows)
        recorded = self.shards.manifest.get("findings", {})
        if recorded.get("version") == VERSION:
            found += [Finding.of_json(one) for one in recorded["found"]]
        else:
            found += of_rows(self.shards)
        estimated = self._near_leakage(records, sets)
        estimated += checks.prompts(sample, self.reader.rules.query_prompt, self.reader.rules.passage_prompt)
        found += checks.of_sample(estimated, len(records), len(rows))
        found += self._truncation(rows, records)
        if self.mixing_mend is not None:
            found += checks.imbalance({name: len(ids) for name, ids in sources.items()}, self.mixing_mend)
        return found

    def _truncation(self, rows: Rows, records: list[Record]) -> list[Finding]:
        """Of all texts where the shards hold tokens cut at the lengths of this run, otherwise of the sample."""
        rules, made = self.reader.rules, self.shards.manifest["tokenizer"]
        if made and all(made[name] == getattr(rules, name) for name in ("query_max_len", "passage_max_len")):
            queries = self.shards.rows("train")
            passages = made["texts"] - queries
            return checks.cut_texts("query", made["cut_queries"], queries, rules.query_max_len) + checks.cut_texts(
                "passage", made["cut_passages"], passages, rules.passage_max_len
            )
        if has_tokenizer(self.reader.folder):
            table, measured = token_lengths(self.reader, records)
            return checks.of_sample(checks.truncation(table), measured, len(rows))
        say(f"note: {self.reader.folder} has no tokenizer.json, so the gate does not count what is cut")
        return []

    def _exact(self, rows: Rows, sets: dict[str, HeldOut]) -> list[Finding]:
        """What takes the keys of all rows."""
        import numpy as np

        negatives = rows.count("negatives") > 0
        if not negatives and not sets:
            return []
        keys = scan(rows)
        found = checks.texts_of_rows(keys)
        for key, whole in sets.items():
            path, held = self.evals[key], np.fromiter(whole.keys, np.int64)
            found += checks.leakage(keys, len(keys), held, path, key, checks.leave_out(path))
        return checks.of_sample(found, len(keys), len(rows))

    def _near_leakage(self, records: list[Record], sets: dict[str, HeldOut]) -> list[Finding]:
        found = []
        for key, whole in sets.items():
            path = self.evals[key]
            mend = checks.leave_out(path, SIMILARITY)
            found += checks.near_leakage(records, nearly(whole), path, key, mend)
        return found


def of_rows(shards: ShardFolder) -> list[Finding]:
    """What the rows alone tell, whatever is trained on them: near duplicates, languages, train rows near those of eval.
    A pure function of the rows."""
    rows = shards.split("train")
    _, sample, records = _sample(shards, rows)
    estimated = checks.languages(sample)[0]
    if "eval" in shards.splits:
        held = HeldOut()
        held.add("eval", *texts_of(list(shards.split("eval"))))
        estimated += checks.near_leakage(records, nearly(held), "the eval split", "data.train", "")
    return _near_duplicates(shards, rows) + checks.of_sample(estimated, len(records), len(rows))


def _sample(shards: ShardFolder, rows: Rows) -> tuple[dict[str, Any], dict[str, list[Record]], list[Record]]:
    """The row numbers of every source; about SAMPLE train rows by source; the same in one list."""
    sources = {source.name: source.rows for source in shards.train_sources()}
    sample = {name: rows.take(ids.tolist()) for name, ids in spread(sources, SAMPLE).items()}
    return sources, sample, [record for some in sample.values() for record in some]


def _near_duplicates(shards: ShardFolder, rows: Rows) -> list[Finding]:
    import numpy as np

    removed = shards.manifest.get("near_duplicates")
    if removed and removed["similarity"] <= SIMILARITY:
        return []
    chosen = spread({"": np.arange(len(rows))}, NEAR_ROWS)[""].tolist()
    found, _ = checks.near_duplicates(rows.take, chosen, SIMILARITY)
    return checks.of_sample(found, len(chosen), len(rows))


def nearly(whole: HeldOut) -> HeldOut:
    """The same texts, evenly spaced ones where there are more than HELD_TEXTS, also matched by near duplicates."""
    texts = list(whole.keys.values())
    made = HeldOut(SIMILARITY)
    for held in texts[:: max(1, -(-len(texts) // HELD_TEXTS))]:
        made.add(held.name, [held.text], [])
    return made


def scan(rows: Rows) -> Keys:
    """The keys of the rows; of SCAN_ROWS evenly spaced ones where there are more."""
    import numpy as np

    keys = Keys()
    some = rows
    if len(rows) > SCAN_ROWS:
        ids = spread({"": np.arange(len(rows))}, SCAN_ROWS)[""]
        parts = (ids[start : start + AT_ONCE].tolist() for start in range(0, len(ids), AT_ONCE))
        some = chain.from_iterable(map(rows.take, parts))
    for record in track(some, "gate: reading the train rows", total=min(len(rows), SCAN_ROWS)):
        keys.add(record)
    return keys


def _content(path: Path) -> Any:
    """What an evaluation set holds, as a hash."""
    if (path / MANIFEST).is_file():
        return open_shards(path).fingerprint
    files = ("corpus.jsonl", "queries.jsonl", "qrels.tsv", "qrels/test.tsv")
    return {name: sha256_of(path / name) for name in files if (path / name).is_file()}


def _cache_folder() -> Path:
    """EMBEDFLEET_CACHE, else embedfleet/ in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    own, shared = os.environ.get("EMBEDFLEET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(shared or Path.home() / ".cache", "embedfleet"), "gate")
