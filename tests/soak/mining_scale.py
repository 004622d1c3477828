"""Mining at scale: time, memory and recall, exactly and through the index.

    python -m tests.soak.mining_scale                              # 200,000 texts exactly, then 1,000,000 by the index
    python -m tests.soak.mining_scale --texts 50000 --approximate-above 10000
    torchrun --nproc-per-node 2 -m tests.soak.mining_scale --over-ranks --texts 1000000 --rows 1000000

--over-ranks searches exactly, as trainer.mine does; the digest of what was mined is the same on any number of ranks.

The embeddings are clustered (a hundred texts around each centre) and made from each text's own number, so that no model
takes part: what is timed is reading, keeping, searching and writing. One JSON line per case.
"""

import argparse
import hashlib
import json
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil

from data_prep.mining.candidates import Corpus
from data_prep.mining.choice import Choice
from data_prep.mining.dense_search import Dense
from data_prep.mining.mine import Mining, mine
from data_prep.mining.vector_cache import VectorCache
from data_prep.stores.base import Chunk
from trainer.engine.join import joined
from trainer.engine.start import Runtime
from trainer.inference.team import Team

SIZE = 384
SPREAD = 0.7


class Numbered:
    """Embeds "text 123 …" near centre 123 // 100, and "query 123 …" near text 123."""

    size, unit, max_len, digest, texts_at_once = SIZE, True, 256, "numbered", 512

    def passages(self, texts: list[str]):
        return self._unit([self._raw(int(text.split()[1])) for text in texts])

    def queries(self, texts: list[str]):
        numbers = [int(text.split()[1]) for text in texts]
        return self._unit([self._raw(i) + 0.3 * _noise(i, 2) for i in numbers])

    def _raw(self, number: int) -> np.ndarray:
        return _noise(number // 100, 0) + SPREAD * _noise(number, 1)

    def _unit(self, drawn: list[np.ndarray]):
        vectors = np.stack(drawn)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.zeros(len(vectors), bool)


class Given(Team):
    """The ranks of trainer.mine without a model: rank 0 makes the vectors."""

    def __init__(self, runtime: Runtime):
        made = Numbered()
        self.world, self.engine = runtime.world, SimpleNamespace(world=runtime.world, device=runtime.device)
        self.size, self.unit, self.max_len, self.digest = made.size, made.unit, made.max_len, made.digest
        self.texts_at_once, self.queries, self.passages = made.texts_at_once, made.queries, made.passages


def _noise(number: int, kind: int) -> np.ndarray:
    return np.random.Generator(np.random.SFC64([number, kind])).standard_normal(SIZE, np.float32)


def text_of(number: int) -> str:
    words = np.random.Generator(np.random.SFC64([number, 3])).integers(0, 30_000, 60)
    return f"text {number} " + " ".join(f"w{word}" for word in words)


class Memory:
    """The most resident bytes of this process above those at the start, sampled every 50 ms."""

    def __enter__(self):
        self.process, self.most, self.done = psutil.Process(), 0, threading.Event()
        self.start = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.05):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()

    @property
    def gib(self) -> float:
        return (self.most - self.start) / 2**30


def case(folder: Path, texts: int, rows: int, method: str, approximate_above: int, team: Given | None = None) -> None:
    step = texts // rows
    given = folder / "rows.jsonl"
    with open(given, "w", encoding="utf-8") as handle:
        for i in range(rows):
            row = {"query": f"query {i * step} w{i}", "positive": text_of(i * step)}
            handle.write(json.dumps(row) + "\n")
    encoder = team or (None if method == "bm25" else Numbered())
    with Memory() as memory:
        began = time.perf_counter()
        corpus = (Chunk(str(i), text_of(i)) for i in range(texts))
        mining = Mining(method, Choice(4, relative_margin=0.05), approximate_above=approximate_above)
        options = {"corpus": corpus, "encoder": encoder, "searcher": team, "cache": folder / "cache"}
        mined = mine([given], folder / "o.jsonl", mining, **options)
        seconds = time.perf_counter() - began
    line = {"method": method, "texts": texts, "rows": rows, "mined": mined, "approximate": texts > approximate_above}
    if team:
        with open(folder / "o.jsonl", "rb") as output:
            line |= {"ranks": team.world.size, "sha256": hashlib.file_digest(output, "sha256").hexdigest()}
    print(json.dumps(line | {"seconds": round(seconds), "gib_above_start": round(memory.gib, 2)}), flush=True)
    if encoder and not team:
        print(json.dumps(line | search(folder / "cache", texts, rows, step, approximate_above)), flush=True)


def over_ranks(texts: int, rows: int) -> None:
    with joined("cpu") as runtime, tempfile.TemporaryDirectory() as folder, Memory() as memory:
        team = Given(runtime)
        team.lead(lambda: case(Path(folder), texts, rows, "dense", texts, team))
        of_ranks = runtime.world.gather_objects(round(memory.gib, 2))
        if runtime.is_main:
            print(json.dumps({"gib_above_start_of_ranks": of_ranks}), flush=True)


def search(folder: Path, texts: int, rows: int, step: int, approximate_above: int) -> dict:
    """Queries per second of the search alone, embeddings being there."""
    encoder, corpus = Numbered(), Corpus()
    for i in range(texts):
        corpus.add(text_of(i), str(i), {})
    corpus.seal()
    passages = VectorCache(folder / encoder.digest, "passages", SIZE, encoder.passages, 512)
    queries = VectorCache(folder / encoder.digest, "queries", SIZE, encoder.queries, 512)
    began = time.perf_counter()
    dense = Dense(corpus, passages, queries, approximate_above)
    built = time.perf_counter() - began
    asked = [f"query {i * step} w{i}" for i in range(min(rows, 2048))]
    nothing = [np.empty(0, np.int64)] * 256
    dense.rank(asked[:256], nothing, 100)  # the index is tuned by its first queries
    began = time.perf_counter()
    for start in range(0, len(asked), 256):
        dense.rank(asked[start : start + 256], nothing[: len(asked) - start], 100)
    seconds = time.perf_counter() - began
    passages.close()
    queries.close()
    return {"index_seconds": round(built, 1), "queries_per_second": round(len(asked) / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--methods", nargs="+", default=["dense"], choices=["bm25", "dense", "both"])
    parser.add_argument("--approximate-above", type=int, default=200_000)
    parser.add_argument("--over-ranks", action="store_true")
    args = parser.parse_args()
    if args.over_ranks:
        for texts in args.texts:
            over_ranks(texts, min(args.rows, texts))
        return
    for method in args.methods:
        for texts in args.texts:
            with tempfile.TemporaryDirectory() as folder:
                case(Path(folder), texts, min(args.rows, texts), method, args.approximate_above)


if __name__ == "__main__":
    main()
