"""Kills `trainer.reindex --watch` five times while others write and delete: python -m tests.soak.reindexing.

Real processes, SIGKILL: three times while the first chunks are copied, twice while it watches. The stores are a real
PostgreSQL and Qdrant's protocol before the client's own engine. Exit code 1 unless the target equals the source in the
end, its vectors are the model's, the alias moved once, and --rollback brings it back.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.stores.base import Chunk, StoreConfig
from data_prep.stores.open import open_collection, open_store
from tests import forked, tiny
from tests.postgres import postgres_server
from tests.servers import QdrantProtocol, answering

COPYING, WATCHING = 3, 2  # kills
SECONDS = 600  # that a step may take


@contextmanager
def qdrant() -> Iterator[StoreConfig]:
    with answering(QdrantProtocol()) as port:
        yield StoreConfig("qdrant", "docs", url=f"http://127.0.0.1:{port}", text_field="body")


@contextmanager
def pgvector() -> Iterator[StoreConfig]:
    with postgres_server() as url:
        yield StoreConfig("pgvector", "docs", url=url, text_field="body")


def chunk(i: int, word: int) -> Chunk:
    vector = np.ones(4, dtype=np.float32)
    return Chunk(str(i), f"w{word % 30} w{i % 30} w{(i + word) % 30}", {"n": i, "word": word}, vector)


def disturb(config: StoreConfig, count: int, over: threading.Event, made: list[int]) -> None:
    """Writes new chunks, changes some and deletes others until the event. made: steps so far."""
    rng = np.random.default_rng(0)
    with open_collection(config) as collection:
        while not over.is_set():
            step = len(made)
            changed = [chunk(int(i), step + 1) for i in rng.integers(0, count, 3)]
            collection.upsert([*{one.id: one for one in changed}.values(), chunk(count + step, step)])
            collection.remove([str(i) for i in rng.integers(0, count + step, 2)])
            made.append(step)
            over.wait(0.2)


class Watcher:
    """The command, in a process of its own."""

    def __init__(self, config: StoreConfig, model: Path, until: Path):
        flags = ["--store", config.kind, "--url", config.url, "--text-field", config.text_field]
        self.argv = ["-m", "trainer.reindex", "--model", str(model), "--device", "cpu", *flags]
        self.copy = [*self.argv, "--collection", "docs", "--target", "docs-new", "--batch", "16", "--alias", "live"]
        self.copy += ["--watch", str(until)]

    def start(self) -> None:
        self.process = forked.start(self.copy)

    def start_watching(self) -> None:
        """Starts it and waits until the first round is over."""
        self.start()
        self.process.wait_until_it_says("watching docs", SECONDS)

    def wait_above(self, count: Callable[[], int], limit: int) -> None:
        deadline = time.monotonic() + SECONDS
        while count() <= limit:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr
            time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def held(config: StoreConfig) -> int:
    """Returns how many chunks the target has."""
    with open_store(config) as store:
        return store.open("docs-new").count() if "docs-new" in store.names() else 0


def soak(config: StoreConfig, count: int, folder: Path) -> list[str]:
    """Returns what is wrong in the end."""
    from trainer.config.sections import ModelConfig
    from trainer.inference.text_encoder import TextEncoder

    model, until = tiny.model(folder / "model"), folder / "now"
    with open_store(config, create=True) as store:
        source = store.create("docs", 4, {})
        for start in range(0, count, 500):
            source.upsert([chunk(i, 0) for i in range(start, min(start + 500, count))])
        store.swap_alias("live", "docs")
    watcher, over, made = Watcher(config, model, until), threading.Event(), []
    writer = threading.Thread(target=disturb, args=(config, count, over, made))
    writer.start()
    for _ in range(COPYING):
        watcher.start()
        watcher.wait_above(lambda: held(config), held(config) + count // 8)
        watcher.kill()
    for _ in range(WATCHING):
        watcher.start_watching()
        watcher.wait_above(lambda: len(made), len(made) + 10)
        watcher.kill()
    watcher.start_watching()
    wrong = [] if aliases(config) == {"live": "docs"} else ["the alias moved before it was told to"]
    over.set()
    writer.join()
    until.touch()
    if watcher.process.wait(SECONDS):
        return [*wrong, watcher.process.stderr]
    print(f"{config.kind}: {len(made)} rounds of writing and deleting\n{watcher.process.stderr}")
    wrong += differences(config, TextEncoder(ModelConfig(path=str(model)), "cpu"))
    wrong += [] if aliases(config) == {"live": "docs-new"} else [f"aliases: {aliases(config)}"]
    forked.run(*watcher.argv, "--rollback", "--alias", "live", timeout=SECONDS)
    return wrong + ([] if aliases(config) == {"live": "docs"} else ["--rollback did not bring the alias back"])


def aliases(config: StoreConfig) -> dict[str, str]:
    with open_store(config) as store:
        return store.aliases()


def differences(config: StoreConfig, encoder) -> list[str]:
    both = []
    for name in ("docs", "docs-new"):
        with open_collection(replace(config, collection=name)) as collection:
            both.append(list(collection.chunks(embeddings=name != "docs")))
    old, new = both
    if old != new:
        return [f"docs has {len(old)} chunks, docs-new {len(new)}, or they differ"]
    own = encoder.passages([one.text for one in new])
    worst = max(float(np.abs(one.embedding - vector).max()) for one, vector in zip(new, own))
    return [] if worst < 1e-5 else [f"a vector differs by {worst:.1e} from its text's"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.reindexing")
    parser.add_argument("--chunks", type=int, default=2000, metavar="N")
    parser.add_argument("--only", choices=["qdrant", "pgvector"], help="default: both")
    args = parser.parse_args(argv)
    wrong = []
    for store in (qdrant, pgvector):
        if args.only in (None, store.__name__):
            with store() as config, tempfile.TemporaryDirectory() as folder:
                wrong += [f"{config.kind}: {one}" for one in soak(config, args.chunks, Path(folder))]
    print("\n".join(wrong) or "all equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
