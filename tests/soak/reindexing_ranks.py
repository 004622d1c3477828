"""Kills two ranks of `trainer.reindex` five times, for each kind of store: python -m tests.soak.reindexing_ranks.

SIGKILL after each sixth of the chunks. The stores are a real Chroma server and Qdrant's local mode; each prints a line
of JSON. Exit code 1 unless every chunk is there once with the vector of one process, and nothing was embedded twice but
one batch per rank and kill.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.common.workers import batches
from data_prep.stores.base import StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import tiny
from tests.counted_reindex import Log, chunk, fill, flags
from tests.servers import chroma_server
from trainer.config.sections import ModelConfig
from trainer.inference.text_encoder import TextEncoder

KILLS, WORLD, BATCH = 5, 2, 256
SECONDS = 3600  # that a start may take


@contextmanager
def chroma(folder: Path) -> Iterator[StoreConfig]:
    with chroma_server(folder) as (port, _):
        yield StoreConfig("chroma", "docs", host="127.0.0.1", port=port)


@contextmanager
def qdrant(folder: Path) -> Iterator[StoreConfig]:
    yield StoreConfig("qdrant", "docs", path=folder)


STORES = {"chroma": chroma, "qdrant": qdrant}


def embedded(log: Log) -> int:
    return sum(sum(log.counts(rank)) for rank in range(WORLD))


def run(argv: list[str], log: Log, until: float) -> int:
    """Starts the ranks and kills them once they have embedded so many chunks; returns how many they have."""
    group, deadline = log.start(argv, WORLD), time.monotonic() + SECONDS
    while any(one.poll() is None for one in group):
        assert time.monotonic() < deadline, group[0].stderr
        if embedded(log) >= until:
            for one in group:
                one.kill()
        time.sleep(0.1)
    codes = [one.wait() for one in group]
    assert until < float("inf") or codes == [0] * WORLD, group[0].stderr + group[1].stderr
    return embedded(log)


def soak(config: StoreConfig, count: int, folder: Path) -> list[str]:
    """Returns what is wrong in the end."""
    model = tiny.model(folder / "model")
    with open_store(config, create=True) as store:
        fill(store.create("docs", 4, {}), count)
    argv = [*flags(config, model), "--target", "docs-new", "--batch", str(BATCH)]
    began, total = time.monotonic(), 0
    for kill in range(KILLS):
        total += run(argv, Log(folder / f"log-{kill}"), count / (KILLS + 1))
    last = Log(folder / "log")
    total += run(argv, last, float("inf")) - last.counts(0)[-1]  # the check
    twice, allowed = total - count, KILLS * WORLD * BATCH
    facts = {"store": config.kind, "chunks": count, "kills": KILLS, "ranks": WORLD, "batch": BATCH}
    facts |= {"embedded_twice": twice, "seconds": round(time.monotonic() - began)}
    print(json.dumps(facts), flush=True)
    wrong = [] if 0 <= twice <= allowed else [f"{twice:,} chunks were embedded twice; allowed: {allowed:,}"]
    return wrong + differences(config, count, TextEncoder(ModelConfig(path=str(model)), "cpu"))


def differences(config: StoreConfig, count: int, encoder: TextEncoder) -> list[str]:
    worst, ids = 0.0, set()
    with open_collection(replace(config, collection="docs-new")) as collection:
        state = collection.about["embedfleet_state"]
        for page in batches(collection.chunks(embeddings=True), 1000):
            own = encoder.passages([one.text for one in page])
            worst = max(worst, float(np.abs(own - np.array([one.embedding for one in page])).max()))
            ids |= {int(one.id) for one in page if one == chunk(int(one.id))}
        there = collection.count()
    wrong = [] if state == "whole" else [f"state: {state}"]
    wrong += [] if there == count and ids == {*range(count)} else [f"{there:,} chunks, {len(ids):,} as they were"]
    return wrong + ([] if worst < 1e-5 else [f"a vector differs by {worst:.1e} from its text's"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.reindexing_ranks")
    parser.add_argument("--chunks", type=int, default=100_000, metavar="N", help="at most 160,000")
    parser.add_argument("--only", choices=STORES, help="default: both")
    args = parser.parse_args(argv)
    wrong = []
    for name in [args.only] if args.only else STORES:
        with tempfile.TemporaryDirectory() as folder, STORES[name](Path(folder, "store")) as config:
            wrong += [f"{name}: {one}" for one in soak(config, args.chunks, Path(folder))]
    print("\n".join(wrong) or "all equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
