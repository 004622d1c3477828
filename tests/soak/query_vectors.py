"""Query vectors of a closed model, killed again and again: python -m tests.soak.query_vectors

`python -m trainer.adapt_queries --endpoint-model …` asks a server on loopback, which fails on a seeded schedule, for
the vectors of 5,000 queries. Five times it is killed with SIGKILL and started again. The server's log and the vectors
on disk at each kill show whether every text was paid once, what was lost, and whether the key got into any file. Prints
one JSON line; exit code 1 where something does not hold.

A call that is under way at a kill may be paid and never arrive: at most kills x concurrency calls are paid twice.
"""

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.model_server.embeddings import BATCH, EmbeddingConfig, TextVectors
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_store
from tests.embedding_server import D, EmbeddingServer, vector_of
from tests.language_model import FAULTS, KEY, MODEL, chunk, files_with_key, pairs, serving
from tests.launching import ROOT, environment

SHARE = 0.2  # of the calls that fail
CHECKS = 2  # calls before the first query: for the number of dimensions, and for chunks of the collection


@dataclass
class Report:
    """The results. asked_again: texts whose vector was on disk at a kill, asked for later. paid_twice: texts."""

    texts: int
    kills: int
    concurrency: int
    calls: int
    failed_calls: dict[str, int]
    on_disk_at_kills: list[int]
    asked_again: int
    paid_twice: int
    paid_twice_at_most: int
    vectors_right: bool
    calls_for_another_output: int
    files_with_key: list[str]
    seconds: float

    def holds(self) -> bool:
        spared = not self.asked_again and not self.calls_for_another_output
        return spared and self.vectors_right and not self.files_with_key and self.paid_twice <= self.paid_twice_at_most


def soak(
    folder: Path, texts: int, kills: int, concurrency: int, start: Callable, slow: float, faults=FAULTS, seed: int = 0
) -> Report:
    """One run in this folder, which is empty. start: argv, file of its output -> a process. slow: seconds of a
    "timeout"; the command waits half as long."""
    questions = [pairs(f"c{number}")[0]["question"] for number in range(texts)]
    write(folder, questions)
    server = EmbeddingServer(seed=seed, share=SHARE, faults=faults, slow=slow, delay=0.1)
    began, calls = time.monotonic(), -(-texts // BATCH)
    with serving(server) as url:
        argv, log = command(folder, url, concurrency, slow), folder / "log.txt"
        on_disk, later = [], []  # later: where the log was at each kill, and which texts were on disk
        for kill in range(kills):
            process = start([*argv, str(folder / "adapted")], log)
            server.wait_for_answers(CHECKS + (kill + 1) * calls // (kills + 1), seconds=600)
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
            durable = kept(folder, questions)
            on_disk.append(len(durable))
            later.append((len(server.calls), durable))
        assert start([*argv, str(folder / "adapted")], folder / "log.txt").wait() == 0, (folder / "log.txt").read_text()
        again = sum(
            text in durable for at, durable in later for call in server.calls[at:] for text in call.body["input"]
        )
        paid, made, failed = Counter(server.answered()), len(server.calls), server.counts()
        assert start([*argv, str(folder / "other")], log).wait() == 0, log.read_text()
        extra = len(server.calls) - made
        found = TextVectors(EmbeddingConfig(model=MODEL, url=url, cache=folder / "cache")).of(questions)
    del failed["answered"]
    return Report(
        texts=texts,
        kills=kills,
        concurrency=concurrency,
        calls=made,
        failed_calls=dict(failed),
        on_disk_at_kills=on_disk,
        asked_again=again,
        paid_twice=sum(count - 1 for count in paid.values()),
        paid_twice_at_most=kills * concurrency * BATCH,
        vectors_right=bool(np.array_equal(found, [vector_of(text) for text in questions])),
        calls_for_another_output=extra,
        files_with_key=files_with_key(folder),
        seconds=round(time.monotonic() - began, 1),
    )


def write(folder: Path, questions: list[str]) -> None:
    """Writes a collection with the model's vectors, and pairs that name its chunks."""
    with open_store(StoreConfig("chroma", "docs", path=folder / "chroma"), create=True) as store:
        chunks = [chunk(number) for number in range(len(questions))]
        for one in chunks:
            one.embedding = vector_of(one.text)
        collection = store.create("docs", D, {})
        for first in range(0, len(chunks), 1000):
            collection.upsert(chunks[first : first + 1000])
    rows = [{"chunk_id": one.id, "question": text, "answer": "a"} for one, text in zip(chunks, questions)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(folder: Path, url: str, concurrency: int, slow: float) -> list[str]:
    """Returns the command without the folder of its output, which is to follow."""
    store = ["--path", folder / "chroma", "--collection", "docs", "--pairs", folder / "pairs.jsonl"]
    options = ["--cache", folder / "cache", "--concurrency", concurrency, "--timeout", slow / 2, "--device", "cpu"]
    argv = ["-m", "trainer.adapt_queries", "--endpoint-model", MODEL, "--endpoint", url, *store, *options, "--output"]
    return [str(part) for part in argv]


def kept(folder: Path, questions: list[str]) -> set[str]:
    """Returns the queries whose vectors are in the cache in whole lines."""
    of_key = {hashlib.sha256(text.encode()).hexdigest(): text for text in questions}
    found = set()
    for path in (folder / "cache").glob("*.jsonl"):
        whole = path.read_bytes().rpartition(b"\n")[0]
        found |= {json.loads(line)["chunk"] for line in whole.splitlines()[1:]}
    return {of_key[key] for key in found & of_key.keys()}


def start(argv: list[str], log: Path) -> subprocess.Popen:
    with open(log, "a") as out:
        command = [sys.executable, *argv]
        return subprocess.Popen(command, cwd=ROOT, env=environment(OPENAI_API_KEY=KEY), stdout=out, stderr=out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), args.texts, args.kills, args.concurrency, start, slow=20.0, seed=args.seed)
    print(json.dumps(asdict(report)))
    return 0 if report.holds() else 1


if __name__ == "__main__":
    sys.exit(main())
