"""The gate at its full size: python -m tests.soak.gate

1. Ten times the planted defects of tests/planted.py among 15,000 good rows: every count of `inspect` is as planned.
2. The same defects among 1,000,000 rows, read by `inspect` and, as shards, by the gate of a run: what takes all rows
   is exact; time and memory of each, in a process of its own.
3. Near duplicates planted among 1,000,000 rows: recall, time and memory.
4. Near duplicates planted at and just above the stated Jaccard similarity, in three scripts: recall, false removals,
   and for rows of real sets (where they are beside the checkout) the same against comparing all pairs.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_prep.quality.gate import Gate
from data_prep.quality.inspect import inspect
from data_prep.quality.sampling import Spool
from data_prep.records import Record
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from data_prep.texts.near_duplicates import NearDuplicates, jaccard, shingles_of
from data_prep.texts.token_lengths import Reader
from data_prep.texts.tokenizer_rules import TextRules
from tests import planted, tiny
from tests.conftest import DATA
from tests.unit.data_prep.helpers import write_jsonl
from tests.unit.data_prep.quality.test_decontaminate import write_set

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLED = ("languages", "truncation", "prompts")  # counted on a sample where there are more rows


def check(what: str, good: bool) -> None:
    print(("ok    " if good else "WRONG ") + what, flush=True)
    if not good:
        sys.exit(1)


def model_folder(folder: Path) -> Path:
    """A tiny model of 32 tokens with prompts."""
    tiny.model(folder)
    stated = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    return folder


def measured(part: str, *arguments) -> dict:
    """Runs one part of this module in a process of its own; its result, with CPU seconds and MiB at most."""
    command = [sys.executable, "-m", "tests.soak.gate", part, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.returncode
    return json.loads(done.stdout.splitlines()[-1])


def defects(folder: Path, clean: int, exact_only: bool) -> None:
    rows, held, planned = planted.defects(clean, times=10)
    planned["source_imbalance"] = 1
    path, evaluation = write_jsonl(folder / "in.jsonl", rows), write_set(folder / "set", held)
    report = measured("inspect", path, folder / "model", evaluation)
    found = report["found"]
    names = [name for name in planned if not (exact_only and name in SAMPLED)]
    counted = {name: found.get(name, 0) for name in names}
    expected = {name: planned[name] for name in names}
    check(f"inspect of {len(rows):,} rows counts {counted}", counted == expected)
    print(f"      {report['seconds']:.0f} CPU s, {report['mib']:.0f} MiB; sample: {report['sample']}")


def inspect_part(path: str, model: str, evaluation: str) -> dict:
    report = inspect(Path(path), as_json=True, tokenizer=model, exclude=[Path(evaluation)])
    counts = {name: report[name] for name in ("exact_duplicates", "query_equals_positive")}
    found = {one["name"]: one["count"] for one in report["findings"]} | counts
    return {"found": found, "sample": report["sample"]}


def run_gate(folder: Path) -> None:
    """The rows that can be read, as shards, before a run: the second look comes from the cache."""
    kept = folder / "kept.jsonl"
    with open(folder / "in.jsonl") as rows, open(kept, "w") as file:
        for line in rows:
            row = json.loads(line)
            if row["query"].strip() and row["positives"][0]:
                file.write(line)
    shard([kept], folder / "shards", eval_fraction=0)
    first, second = (measured("gate", folder) for _ in range(2))
    names = {"leakage": 500, "positives_as_negatives": 300}
    check(f"the gate of a run finds {first['found']}", {n: first["found"].get(n) for n in names} == names)
    check("and again from its cache", second["found"] == first["found"] and second["seconds"] < first["seconds"] / 3)
    cost = f"{first['seconds']:.0f} CPU s, {first['mib']:.0f} MiB; again {second['seconds']:.1f} CPU s"
    print(f"      {first['rows']:,} rows: {cost}")


def gate_part(folder: str) -> dict:
    os.environ["EMBEDFLEET_CACHE"] = f"{folder}/cache"  # importing conftest names another one
    shards = open_shards(Path(folder) / "shards")
    reader = Reader(str(Path(folder) / "model"), TextRules("query: ", "passage: ", 32, 32))
    found = Gate(shards, {"data.eval": str(Path(folder) / "set")}, reader, "mend").findings()
    return {"found": {one.name: one.count for one in found}, "rows": shards.rows("train")}


def removed(records: list[Record], similarity: float) -> tuple[list[int], NearDuplicates]:
    index = NearDuplicates(similarity)
    for record in records:
        index.add(record)
    return index.find(lambda rows: [records[row] for row in rows]).nonzero()[0].tolist(), index


def alike(one: Record, other: Record) -> float:
    pairs = (([one.query], [other.query]), (one.positives, other.positives))
    return min(jaccard(shingles_of(a), shingles_of(b)) for a, b in pairs)


def near(similarity: float, rows: int = 20_000, copies: int = 4_000) -> None:
    rng = random.Random(0)
    records = planted.rows(rows)
    made = [planted.near(record, similarity, rng) for record in records[:copies]]
    least = [alike(*pair) for pair in zip(records, made)]
    gone, _ = removed([*records, *made], similarity)
    recall = len([row for row in gone if row >= rows]) / copies
    wrong = [row for row in gone if row < rows]
    mean = sum(least) / copies
    text = f"Jaccard {similarity}: {copies:,} planted among {rows:,} (mean {mean:.3f}): recall {recall:.4f}"
    check(f"{text}, {len(wrong)} distinct rows removed", recall >= 0.95 and not wrong)


def real(name: str, similarity: float) -> None:
    lines = (DATA / "retrieval" / name / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2500]
    records = [Record(row["query"], row["pos"]) for row in map(json.loads, lines)]
    queries = [shingles_of([record.query]) for record in records]
    positives = [shingles_of(record.positives) for record in records]
    pairs = {
        (i, j)
        for j in range(len(records))
        for i in range(j)
        if jaccard(queries[i], queries[j]) >= similarity and jaccard(positives[i], positives[j]) >= similarity
    }
    gone, _ = removed(records, similarity)
    kept = set(range(len(records))) - set(gone)
    missed = [pair for pair in pairs if kept.issuperset(pair)]
    wrong = [row for row in gone if not any((other, row) in pairs for other in kept)]
    text = f"{name}, Jaccard {similarity}: {len(pairs)} pairs among {len(records):,} rows, {len(missed)} missed"
    check(
        f"{text}, {len(wrong)} rows removed that are near no kept one", not wrong and len(missed) <= 0.05 * len(pairs)
    )


def near_of_many(folder: Path, copies: int = 10_000) -> None:
    """The readable rows of part 2, with near duplicates planted among them."""
    rng, copied = random.Random(1), 0
    path = folder / "near.jsonl"
    with open(folder / "kept.jsonl") as rows, open(path, "w") as file:
        for line in rows:
            file.write(line)
            row = json.loads(line)
            if copied < copies and rng.random() < 0.02:
                copied += 1
                copy = planted.near(Record(row["query"], row["positives"]), 0.85, rng)
                file.write(json.dumps({"query": copy.query, "positives": copy.positives, "planted": True}) + "\n")
    found = measured("near", path)
    recall = found["planted"] / copies
    text = f"{copies:,} near duplicates at 0.85 among {found['rows']:,} rows: recall {recall:.4f}, "
    check(f"{text}{found['others']:,} others removed, {found['unsure']} unsure", recall >= 0.95)
    print(f"      {found['hashing']:.0f} CPU s hashing, {found['finding']:.0f} CPU s finding, {found['mib']:.0f} MiB")


def near_part(path: str) -> dict:
    index, spool, flags = NearDuplicates(0.85), Spool(), bytearray()
    start = time.process_time()
    with open(path) as lines:
        for line in lines:
            row = json.loads(line)
            record = Record(row["query"], row["positives"])
            index.add(record)
            spool.add(record)
            flags.append("planted" in row)
    hashed = time.process_time()
    gone = index.find(spool.take).nonzero()[0].tolist()
    found = sum(flags[row] for row in gone)
    return {
        "rows": len(flags),
        "planted": found,
        "others": len(gone) - found,
        "unsure": index.unsure,
        "hashing": hashed - start,
        "finding": time.process_time() - hashed,
    }


PARTS = {"inspect": inspect_part, "gate": gate_part, "near": near_part}


def part(name: str, *arguments: str) -> None:
    found = PARTS[name](*arguments)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps(found | {"seconds": time.process_time(), "mib": mib}))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for size, clean in (("small", 15_000), ("large", 1_000_000)):
            folder = Path(name) / size
            folder.mkdir()
            model_folder(folder / "model")
            defects(folder, clean, exact_only=size == "large")
        run_gate(folder)
        near_of_many(folder)
    for similarity in (0.7, 0.8, 0.85, 0.9, 0.95):
        near(similarity)
    for name in ("k8s_docs", "medquad_small", "jaquad_ja") if DATA.is_dir() else ():
        for similarity in (0.7, 0.85):
            real(name, similarity)


if __name__ == "__main__":
    part(*sys.argv[1:]) if len(sys.argv) > 1 else main()
