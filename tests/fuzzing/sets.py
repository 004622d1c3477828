"""Target: retrieval sets and corpora. A set that is accepted can be scored, excluded and mined."""

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from data_prep.quality.decontaminate import held_out
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from tests.fuzzing.case import Case, Finding, command
from tests.fuzzing.mutations import Draw, dumps

TARGET = "sets"
DOCUMENTS = [
    {"_id": "d1", "title": "T", "text": "a text"}, {"_id": "d2", "text": "another"}, {"id": 3, "text": "third"},
]  # fmt: skip
QUERIES = [{"_id": "q1", "text": "what?"}, {"_id": "q2", "text": "who?", "metadata": {"a": 1}}]
QRELS = [["q1", "d1", "1"], ["q1", "d2", "0"], ["q2", "3", "2"], ["q2", "d2", "1.0"]]
ROWS = '{"query": "what now", "positive": "a text"}\n{"query": "who", "positive": "b text"}\n'


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    docs, queries, qrels = [*DOCUMENTS], [*QUERIES], [[*row] for row in QRELS]
    for _ in range(1 + d.number(0, 3)):
        which = d.number(0, 2)
        if which == 0:
            docs = _rows(d, docs)
        elif which == 1:
            queries = _rows(d, queries)
        else:
            qrels = _rows(d, qrels)
    files = {"set/corpus.jsonl": _lines(d, docs), "set/queries.jsonl": _lines(d, queries)}
    beir = d.chance(2)
    head = ["query-id\tcorpus-id\tscore"] if beir and not d.chance(5) else []
    table = [
        "\t".join(one if isinstance(one, str) else dumps(one) for one in row) if isinstance(row, list) else dumps(row)
        for row in qrels
    ]
    files["set/qrels/test.tsv" if beir else "set/qrels.tsv"] = d.bytes_of("\n".join(head + table) + "\n")
    files["rows.jsonl"] = ROWS.encode()
    if d.chance(30):
        del files[d.pick(sorted(files))]
    return Case(TARGET, {"strict": d.chance(4), "ignore": d.chance(3)}, files)


def _rows(d: Draw, rows: list) -> list:
    changed = d.mutated(rows)
    return changed if isinstance(changed, list) else [changed]


def _lines(d: Draw, rows: list) -> bytes:
    return d.bytes_of("\n".join(dumps(row, ensure_ascii=d.chance(2)) for row in rows) + "\n")


def check(case: Case, folder: Path) -> None:
    path = folder / "set"
    try:
        data = load_set(path, strict=case.data["strict"], ignore_identical_ids=case.data["ignore"])
    except BadInput:
        data = None
    if data is not None:
        check_set(data)
        try:
            held_out([path])
        except BadInput as error:
            raise Finding("a set that is evaluated cannot be excluded", str(error)) from error
    if "rows.jsonl" not in case.files:
        return
    code = command(
        "shard", "rows.jsonl", "--output", "shards", "--eval-fraction", "0", "--workers", "1", "--exclude", "set"
    )
    if code and data is not None and "no row is left" not in _said():
        raise Finding("shard refuses a set that is evaluated", _said()[-300:])
    command("mine", "rows.jsonl", "--output", "mined.jsonl", "--corpus", "set", "--k", "1")


def _said() -> str:
    from tests.fuzzing.case import printed

    return printed()


def check_set(data: RetrievalSet) -> None:
    from trainer.evaluation.compare import means
    from trainer.evaluation.ranking_metrics import score_run
    from trainer.inference.metrics import rank_documents

    if len(data.doc_ids) != len({*data.doc_ids}) or len(data.query_ids) != len({*data.query_ids}):
        raise Finding("a set holds an id twice")
    for text in (*data.doc_texts, *data.query_texts, *data.doc_ids, *data.query_ids):
        if not isinstance(text, str):
            raise Finding("a set holds a text or id that is none")
        text.encode()
    [note.encode() for note in data.notes]
    json.dumps(data.qrels)
    sizes = (len(data.query_ids), 4), (len(data.doc_ids), 4)
    vectors = [np.linspace(-1, 1, rows * columns, dtype=np.float32).reshape(rows, columns) for rows, columns in sizes]
    values = means(score_run(data.qrels, rank_documents(*vectors, data)))
    if not all(0 <= value <= 1 for value in values.values()):
        raise Finding("a metric lies outside 0..1", str(values))
