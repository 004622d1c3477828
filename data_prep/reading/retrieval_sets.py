"""Retrieval sets: queries, documents and relevance judgements.

A set is one of these:
- a folder with corpus.jsonl, queries.jsonl and qrels.tsv (query id, document id, grade; no header) or BEIR's
  qrels/test.tsv (with a header),
- the eval split of a shard folder,
- a collection of a store, and a file of pairs that name its chunks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.console import track
from data_prep.common.errors import BadInput
from data_prep.common.finite import decode_whole
from data_prep.reading.categories import Categories, FieldValues, metadata_of_record, metadata_of_row
from data_prep.reading.formats import read_records
from data_prep.reading.row import MISSING
from data_prep.reading.scored_pairs import ScoredPairs, differ, pairs_of, read_scored_pairs
from data_prep.records import document_text, has_text, query_key, text_key
from data_prep.remote.copies import local
from data_prep.shards.folder import ShardFolder, open_shards
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection

_GRADE = re.compile(r"\s*[-+]?\d{1,9}(\.0*)?\s*", re.ASCII)  # pandas writes whole numbers as 1.0


@dataclass
class RetrievalSet:
    """A retrieval set in memory."""

    name: str
    doc_ids: list[str]
    doc_texts: list[str]  # in the order of doc_ids
    query_ids: list[str]
    query_texts: list[str]  # in the order of query_ids
    qrels: dict[str, dict[str, int]]  # query id -> document id -> grade
    flaws: list[str] = field(default_factory=list)  # lines: what is left out, or judged and missing, with counts
    left_out: int = 0  # graded pairs of an eval split, skipped: a score does not say what is relevant
    pairs: ScoredPairs | None = None  # those pairs, evaluated by themselves; None: no two scores differ
    shards: ShardFolder | None = field(default=None, compare=False, repr=False)  # whose eval split it is
    ignore_identical_ids: bool = False  # BEIR's rule: no document is retrieved for the query of the same id
    categories: Categories | None = field(default=None, repr=False)  # of the queries
    fields: list[str] = field(
        default_factory=list, repr=False
    )  # names of the metadata, where categories were asked for

    @property
    def parts(self) -> "list[RetrievalSet | ScoredPairs]":
        """The sets that are evaluated one by one."""
        return [self, self.pairs] if self.pairs else [self]

    @property
    def notes(self) -> list[str]:
        """Lines to print once."""
        fate = (
            "evaluated separately, by their scores" if self.pairs else "not evaluated, because their scores are equal"
        )
        graded = f"{self.name}: {self.left_out} graded pairs, which do not say what is relevant, are {fate}"
        return [*self.flaws, *([graded] if self.left_out else []), *self._note_on_ids()]

    def own_documents(self) -> dict[int, int]:
        """Returns number of a query -> number of the document with its id."""
        number_of = {query: number for number, query in enumerate(self.query_ids)}
        return {number_of[doc]: number for number, doc in enumerate(self.doc_ids) if doc in number_of}

    def ignored_documents(self) -> dict[int, int]:
        """Returns number of a query -> number of the document that is not retrieved for it."""
        return self.own_documents() if self.ignore_identical_ids else {}

    def _note_on_ids(self) -> list[str]:
        own = self.own_documents()
        if not own:
            return []
        count = f"{self.name}: {len(own):,} of {len(self.query_ids):,} queries have the id of a document"
        if self.ignore_identical_ids:
            return [f"{count}, which is not retrieved for them (BEIR's rule)"]
        pairs = ((self.query_texts[query], self.doc_texts[doc]) for query, doc in own.items())
        same = sum(text_key(query) in (text_key(doc), text_key(doc.partition("\n")[2])) for query, doc in pairs)
        mend = "--ignore-identical-ids of trainer.evaluate, data.ignore_identical_ids of a run file"
        rule = f"BEIR does not retrieve that document for them; by that rule: {mend}"
        return [f"{count}, {same:,} of them its text; it is ranked like any other. {rule}"]


class _Flaws:
    """Flaws that do not prevent an evaluation: of each kind the first one, and their number."""

    def __init__(self):
        self._kinds: dict[str, tuple[str, int]] = {}

    def add(self, where: str, fate: str) -> None:
        """fate: ends the line that begins with the count of this kind."""
        first, count = self._kinds.get(fate, (where, 0))
        self._kinds[fate] = first, count + 1

    def lines(self) -> list[str]:
        return [f"{first}; {count:,} {fate}" for fate, (first, count) in self._kinds.items()]


def load_set(
    path: str | Path, strict: bool = False, ignore_identical_ids: bool = False, by: str | None = None
) -> RetrievalSet:
    """Reads a retrieval set or a shard folder's eval split. Raises BadInput with every problem.

    Published sets have empty texts, and judgements of queries and documents that they lack. Those become notes of the
    set. strict: problems. ignore_identical_ids: see RetrievalSet. by: a field of the metadata, for categories.
    """
    path = local(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise BadInput(
            f"{path}: {what}; name a retrieval set (a folder of corpus.jsonl, queries.jsonl and qrels.tsv), or the "
            "shard folder of pairs: python -m data_prep shard INPUT… --output FOLDER"
        )
    if (path / "manifest.json").is_file():
        return eval_set_of(open_shards(path), by)
    problems: list[str] = []
    flaws, values = _Flaws(), None if by is None else FieldValues(by)
    docs = _texts(path / "corpus.jsonl", "documents", problems, flaws, values)
    queries = _texts(path / "queries.jsonl", "queries", problems, flaws, values)
    qrels = _qrels(path, docs, queries, problems, flaws)
    docs, queries = ({key: text for key, text in texts.items() if has_text(text)} for texts in (docs, queries))
    judged = {q: text for q, text in queries.items() if any(grade > 0 for grade in qrels.get(q, {}).values())}
    if not problems and not any(grade > 0 and doc in docs for q in judged for doc, grade in qrels[q].items()):
        problems += [f"{path}: no query has a relevant document", *flaws.lines()]
    elif not problems and strict:
        problems += [f"{line} (refused by --strict)" for line in flaws.lines()]
    if problems:
        raise BadInput(problems[:50])
    sides = [*docs], [*docs.values()], [*judged], [*judged.values()]
    data = RetrievalSet(path.name, *sides, qrels, flaws.lines(), ignore_identical_ids=ignore_identical_ids)
    return _with_categories(data, values)


def _with_categories(data: RetrievalSet, values: FieldValues | None) -> RetrievalSet:
    if values:
        data.categories, data.fields = values.of_queries(data.query_ids, data.qrels), [*values.known]
    return data


def _json_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, dict]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = decode_whole(line)
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


def _texts(
    path: Path, kind: str, problems: list[str], flaws: _Flaws, values: FieldValues | None = None
) -> dict[str, str]:
    """Returns id -> text, also of those without text. kind: "documents", which have titles, or "queries"."""
    texts: dict[str, str] = {}
    for number, value in _json_lines(path, problems):
        key = value.get("_id") if value.get("id") is None else value["id"]
        text = "" if value.get("text", MISSING) is None else value.get("text")
        if key is None or not isinstance(text, str):
            problems.append(f"{path}:{number}: needs the keys id (or _id) and text")
            continue
        full = document_text(value.get("title") if kind == "documents" else "", text)
        if texts.get(str(key), full) != full:
            problems.append(f"{path}:{number}: id {key!r} stands twice")
        elif str(key) in texts:
            flaws.add(
                f"{path}:{number}: id {key!r} stands twice with the same text", "rows that repeat one are left out"
            )
        elif not has_text(full):
            flaws.add(f"{path}:{number}: text of {key!r} is empty", f"{kind} without text are left out")
        texts[str(key)] = full
        if values:
            see = values.see_document if kind == "documents" else values.see_query
            see(str(key), metadata_of_row(value))
    if not texts and not problems:
        problems.append(f"{path}: empty")
    return texts


def _qrels(path: Path, docs: dict, queries: dict, problems: list[str], flaws: _Flaws) -> dict[str, dict[str, int]]:
    """Returns query id -> document id -> grade, without unknown queries. docs, queries: id -> text."""
    beir = path / "qrels" / "test.tsv"
    file = beir if beir.is_file() else path / "qrels.tsv"
    qrels: dict[str, dict[str, int]] = {}
    for number, query, doc, grade in _judgements(file, problems):
        if not has_text(queries.get(query, "")):
            state = "has no text" if query in queries else "is not in queries.jsonl"
            flaws.add(f"{file}:{number}: query {query!r} {state}", "judgements of such queries are left out")
            continue
        if not has_text(docs.get(doc, "")):
            state = "has no text" if doc in docs else "is not in corpus.jsonl"
            flaws.add(
                f"{file}:{number}: document {doc!r} {state}", "judgements of such documents count as not retrieved"
            )
        if qrels.setdefault(query, {}).setdefault(doc, grade) != grade:
            fate = "judgements replace an earlier one of the same documents"
            flaws.add(f"{file}:{number}: document {doc!r} has another grade for {query!r} above", fate)
        qrels[query][doc] = grade
    return qrels


def _judgements(file: Path, problems: list[str]) -> Iterator[tuple[int, str, str, int]]:
    """Yields line, query id, document id and grade."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip("\n").split("\t")
                if (number == 1 and fields[-1:] == ["score"]) or not line.strip():
                    continue  # BEIR's header, or a blank line
                if len(fields) != 3 or not _GRADE.fullmatch(fields[2]):
                    need = "needs query id, document id and a whole grade, separated by tabs"
                    problems.append(f"{file}:{number}: {need}")
                    continue
                yield number, fields[0], fields[1], int(float(fields[2]))
    except (OSError, UnicodeDecodeError):
        problems.append(f"{file}: missing or unreadable (three columns: query id, document id, grade)")


def eval_set_of(shards: ShardFolder, by: str | None = None) -> RetrievalSet:
    """Makes a set of an eval split.

    Corpus: its distinct positives and negatives. Relevant, with grade 1: the positives of a query, of equal queries,
    and of its parent and variants. Graded pairs are a set of their own, `pairs`. by: see load_set.
    """
    path = shards.path
    if "eval" not in shards.splits:
        raise BadInput(f"{path}: has no eval split; make one with: python -m data_prep shard … --eval-fraction 0.1")
    values = None if by is None else FieldValues(by)
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
        if values:
            values.see_query(query, metadata_of_record(record))
        same = grades.setdefault(query_key(record), {})
        own = qrels.setdefault(query, same)
        for text in (*record.positives, *record.negatives):
            docs.setdefault(f"d{text_key(text)}", text)
        for text in record.positives:
            own[f"d{text_key(text)}"] = same[f"d{text_key(text)}"] = 1
    sides = [*docs], [*docs.values()], [*queries], [*queries.values()]
    return _with_categories(RetrievalSet(path.name, *sides, qrels, [], graded, scored_of(shards, by), shards), values)


def scored_of(shards: ShardFolder, by: str | None = None) -> ScoredPairs | None:
    """Returns the graded pairs of an eval split, or None if no two of their scores differ. by: see load_set."""
    rows = shards.split("eval")
    if not rows.count("score") or not differ(rows):
        return None
    return pairs_of(shards.path.name, (record for record in rows if record.score is not None), by, shards)


def load_evaluation(
    path: str | Path, strict: bool = False, ignore_identical_ids: bool = False, by: str | None = None
) -> RetrievalSet | ScoredPairs:
    """Reads whatever a model can be evaluated on: a retrieval set, a shard folder's eval split, or a file of scored
    pairs. Raises BadInput with every problem; the options are those of load_set."""
    path = local(path)
    if path.is_file():
        return read_scored_pairs(path, by)
    if (path / "manifest.json").is_file():
        return evaluation_of(open_shards(path), by)
    return load_set(path, strict, ignore_identical_ids, by)


def evaluation_of(shards: ShardFolder, by: str | None = None) -> RetrievalSet | ScoredPairs:
    """Returns the eval split of a shard folder as a retrieval set; as scored pairs if it holds nothing else. Raises
    BadInput."""
    only_graded = "eval" in shards.splits and shards.split("eval").count("score") == shards.rows("eval")
    return (scored_of(shards, by) if only_graded else None) or eval_set_of(shards, by)


def load_collection(
    config: StoreConfig,
    pairs: Path,
    where: dict[str, Any] | None = None,
    strict: bool = False,
    by: str | None = None,
) -> RetrievalSet:
    """Makes a set of a collection (its chunks are the corpus) and a file of pairs (their queries).

    Relevant, with grade 1: the chunks that a pair names by `chunk_id`, or a record by `doc_ids`. Chunks that are not
    in the collection count as not retrieved, and queries of no other chunk are left out: notes of the set. strict:
    problems. by: see load_set. Raises BadInput: no such collection, bad rows, rows that name no chunk.
    """
    values = None if by is None else FieldValues(by)
    docs: dict[str, str] = {}
    with open_collection(config) as collection:
        for chunk in track(collection.chunks(where), f"reading {config.collection}"):
            docs[chunk.id] = chunk.text
            if values:
                values.see_document(chunk.id, chunk.metadata)
    queries, qrels, flaws = judged_queries(pairs, docs, looked_in(config, where), strict, values)
    sides = [*docs], [*docs.values()], [*queries], [*queries.values()]
    return _with_categories(RetrievalSet(config.collection, *sides, qrels, flaws), values)


def looked_in(config: StoreConfig, where: dict[str, Any] | None) -> str:
    """Returns where the chunks of a pair are looked for, for messages."""
    return f"in {config.collection}" + (", where --where fits" if where else "")


def judged_queries(
    pairs: Path, docs: dict[str, Any], where_looked: str, strict: bool = False, values: FieldValues | None = None
) -> tuple[dict[str, str], dict[str, dict[str, int]], list[str]]:
    """Reads pairs that name chunks, see load_collection: query id -> text, query id -> chunk -> 1, and flaws as lines.

    docs: has the ids of the chunks as keys.
    """
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    unnamed, flaws = 0, _Flaws()
    for record in read_records(pairs, positive="answer"):
        query = f"q{text_key(record.query)}"
        queries.setdefault(query, record.query)
        qrels.setdefault(query, {}).update(dict.fromkeys(record.doc_ids, 1))
        if values:
            values.see_query(query, record.metadata)
        unnamed += not record.doc_ids
        for name in record.doc_ids:
            if name not in docs:
                flaws.add(f"{pairs}: chunk {name!r} is not {where_looked}", "such chunks count as not retrieved")
    problems = []
    if unnamed:
        problems.append(f"{pairs}: {unnamed:,} rows name no chunk (chunk_id): which chunk answers them?")
    for query in [query for query, grades in qrels.items() if not unnamed and grades.keys().isdisjoint(docs)]:
        flaws.add(f"{pairs}: query {queries.pop(query)!r} has no chunk {where_looked}", "such queries are left out")
        del qrels[query]
    if not queries:
        problems += [f"{pairs}: names no chunk that is {where_looked}" if flaws.lines() else f"{pairs}: holds no pair"]
    elif strict:
        problems += [f"{line} (refused by --strict)" for line in flaws.lines()]
    if problems:
        raise BadInput(problems)
    return queries, qrels, flaws.lines()
