"""Retrieval sets: queries, documents and relevance judgements.

A set is one of these:
- a folder with corpus.jsonl, queries.jsonl and qrels.tsv (query id, document id, grade; no header) or BEIR's
  qrels/test.tsv (with a header),
- the eval split of a shard folder,
- a collection of a store, and a file of pairs that name its chunks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.reading.formats import read_records
from data_prep.records import document_text, query_key, text_key
from data_prep.shards.folder import ShardFolder, open_shards
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection


@dataclass
class RetrievalSet:
    """A retrieval set in memory."""

    name: str
    doc_ids: list[str]
    doc_texts: list[str]  # in the order of doc_ids
    query_ids: list[str]
    query_texts: list[str]  # in the order of query_ids
    qrels: dict[str, dict[str, int]]  # query id -> document id -> grade
    left_out: int = 0  # graded pairs of an eval split, skipped: a score does not say what is relevant
    shards: ShardFolder | None = field(default=None, compare=False, repr=False)  # whose eval split it is

    @property
    def notes(self) -> list[str]:
        """Lines to print once."""
        if not self.left_out:
            return []
        return [f"{self.name}: {self.left_out} graded pairs are not evaluated, as they do not say what is relevant"]


def load_set(path: str | Path) -> RetrievalSet:
    """Reads a retrieval set or a shard folder's eval split. Raises BadInput with every problem."""
    path = Path(path)
    if not path.is_dir():
        state = "is a file" if path.exists() else "no such folder"
        raise BadInput(f"{path}: {state}; a retrieval set holds corpus.jsonl, queries.jsonl and qrels.tsv")
    if (path / "manifest.json").is_file():
        return eval_set_of(open_shards(path))
    problems: list[str] = []
    docs = _texts(path / "corpus.jsonl", problems, with_title=True)
    queries = _texts(path / "queries.jsonl", problems, with_title=False)
    qrels = _qrels(path, docs, queries, problems)
    judged = {q: text for q, text in queries.items() if any(grade > 0 for grade in qrels.get(q, {}).values())}
    if not problems and not judged:
        problems.append(f"{path}: no query has a relevant document")
    if problems:
        raise BadInput(problems[:50])
    return RetrievalSet(path.name, [*docs], [*docs.values()], [*judged], [*judged.values()], qrels)


def _json_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, dict]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    problems.append(f"{path}:{number}: not JSON ({error})")
                    continue
                if isinstance(value, dict):
                    yield number, value
                else:
                    problems.append(f"{path}:{number}: not a JSON object")
    except FileNotFoundError:
        problems.append(f"{path}: missing")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error})")


def _texts(path: Path, problems: list[str], with_title: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, value in _json_lines(path, problems):
        key = value.get("id", value.get("_id"))
        text = value.get("text")
        if key is None or not isinstance(text, str):
            problems.append(f"{path}:{number}: needs the keys id (or _id) and text")
            continue
        full = document_text(value.get("title") if with_title else "", text)
        if not full.strip():
            problems.append(f"{path}:{number}: text of {key!r} is empty")
        if str(key) in texts:
            problems.append(f"{path}:{number}: id {key!r} stands twice")
        texts[str(key)] = full
    if not texts and not problems:
        problems.append(f"{path}: empty")
    return texts


def _qrels(path: Path, docs: dict, queries: dict, problems: list[str]) -> dict[str, dict[str, int]]:
    beir = path / "qrels" / "test.tsv"
    file = beir if beir.is_file() else path / "qrels.tsv"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        problems.append(f"{file}: missing or unreadable (three columns: query id, document id, grade)")
        return {}
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if number == 1 and fields[-1:] == ["score"]:
            continue  # BEIR's header
        if not line.strip():
            continue
        if len(fields) != 3 or not fields[2].strip().lstrip("-").isdigit():
            problems.append(f"{file}:{number}: needs query id, document id and a whole grade, separated by tabs")
            continue
        query, doc, grade = fields[0], fields[1], int(fields[2])
        if query not in queries:
            problems.append(f"{file}:{number}: query {query!r} is not in queries.jsonl")
        if doc not in docs:
            problems.append(f"{file}:{number}: document {doc!r} is not in corpus.jsonl")
        qrels.setdefault(query, {})[doc] = grade
    return qrels


def eval_set_of(shards: ShardFolder) -> RetrievalSet:
    """Makes a set of an eval split.

    Corpus: its distinct positives and negatives. Relevant, with grade 1: the positives of a query, of equal queries,
    and of its parent and variants.
    """
    path = shards.path
    if "eval" not in shards.splits:
        raise BadInput(f"{path}: has no eval split; make one with: python -m data_prep shard … --eval-fraction 0.1")
    docs: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    grades: dict[int, dict[str, int]] = {}  # by query_key: one table for a query and its variants
    rows = shards.split("eval")
    graded = rows.count("score")
    if graded == len(rows):
        raise BadInput(f"{path}: its eval split holds graded pairs only, which do not say what is relevant")
    for record in rows:
        if record.score is not None:
            continue
        query = f"q{text_key(record.query)}"
        queries.setdefault(query, record.query)
        same = grades.setdefault(query_key(record), {})
        own = qrels.setdefault(query, same)
        for text in (*record.positives, *record.negatives):
            docs.setdefault(f"d{text_key(text)}", text)
        for text in record.positives:
            own[f"d{text_key(text)}"] = same[f"d{text_key(text)}"] = 1
    return RetrievalSet(path.name, [*docs], [*docs.values()], [*queries], [*queries.values()], qrels, graded, shards)


def load_collection(config: StoreConfig, pairs: Path, where: dict[str, Any] | None = None) -> RetrievalSet:
    """Makes a set of a collection (its chunks are the corpus) and a file of pairs (their queries).

    Relevant, with grade 1: the chunks that a pair names by `chunk_id`, or a record by `doc_ids`. Raises BadInput: no
    such collection, bad rows, unknown chunks.
    """
    with open_collection(config) as collection:
        docs = {chunk.id: chunk.text for chunk in track(collection.chunks(where), f"reading {config.collection}")}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    unnamed, missing = 0, []
    for record in read_records(pairs, positive="answer"):
        query = f"q{text_key(record.query)}"
        queries.setdefault(query, record.query)
        qrels.setdefault(query, {}).update(dict.fromkeys(record.doc_ids, 1))
        unnamed += not record.doc_ids
        missing += [name for name in record.doc_ids if name not in docs]
    problems = []
    if unnamed:
        problems.append(f"{pairs}: {unnamed:,} rows name no chunk (chunk_id): which chunk answers them?")
    if missing:
        where_looked = f"in {config.collection}" + (", where --where fits" if where else "")
        problems.append(f"{pairs}: {len(missing):,} rows name chunks that are not {where_looked}, such as {missing[0]}")
    if not queries:
        problems.append(f"{pairs}: holds no pair")
    if problems:
        raise BadInput(problems)
    return RetrievalSet(config.collection, [*docs], [*docs.values()], [*queries], [*queries.values()], qrels)
