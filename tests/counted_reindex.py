"""A rank of trainer.reindex that writes down what it embeds and writes, and ends when it is told to."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common.errors import Failed
from data_prep.stores.base import Chunk, Collection, StoreConfig
from tests import forked
from tests.launching import ROOT
from trainer import reindex
from trainer.inference.text_encoder import TextEncoder
from trainer.reindexing import ranks


def chunk(i: int) -> Chunk:
    """Another text for each number below 160,000, of words of tiny.py."""
    text = " ".join(f"w{word % 400}" for word in [i // 400, i, *range(i, i + i % 7)])
    return Chunk(str(i), text, {"n": i}, np.ones(4, dtype=np.float32))


def fill(source: Collection, count: int) -> None:
    for start in range(0, count, 500):
        source.upsert([chunk(i) for i in range(start, min(start + 500, count))])


def flags(config: StoreConfig, model: Path) -> list[str]:
    """Flags of trainer.reindex for the collection and a model."""
    named = {"store": config.kind, "path": config.path, "host": config.host, "port": config.port, "url": config.url}
    named |= {"text-field": config.text_field, "collection": config.collection, "model": model, "device": "cpu"}
    return [part for name, value in named.items() if value is not None for part in (f"--{name}", str(value))]


@dataclass
class Log:
    """Notes of the ranks of one start, each in a file."""

    folder: Path

    def start(self, argv: list[str], world: int = 2, **ends: tuple[int, str]) -> list[forked.Forked]:
        """ends: rank0=(2, "killed") kills rank 0 as it begins to embed its second batch; "fails" raises an error."""
        self.folder.mkdir(parents=True)
        ends = {name.removeprefix("rank"): end for name, end in ends.items()}
        return forked.ranks(world, ["tests.counted_reindex:main", json.dumps([str(self.folder), ends, argv])], ROOT)

    def _lines(self, rank: int, kind: str) -> list:
        file = self.folder / f"{rank}.{kind}"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def embedded(self, rank: int) -> list[list[str]]:
        """Batches of texts."""
        return self._lines(rank, "embedded")

    def counts(self, rank: int) -> list[int]:
        """Texts of each batch."""
        return self._lines(rank, "counts")

    def written(self, rank: int) -> int:
        return sum(self._lines(rank, "written"))


def main(folder: str, ends: dict[str, tuple[int, str]], argv: list[str]) -> None:
    rank, calls = os.environ["RANK"], []
    last, how = ends.get(rank, (0, ""))
    passages, embedded = TextEncoder.passages, ranks.embedded

    def note(kind: str, value) -> None:
        with Path(folder, f"{rank}.{kind}").open("a") as file:
            file.write(f"{json.dumps(value)}\n")

    def counted(self, texts, prompt=None):
        calls.append(len(texts))
        note("embedded", texts)
        note("counts", len(texts))
        if len(calls) == last and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == last:
            raise Failed("no memory for this batch")
        return passages(self, texts, prompt)

    def writing(chunks, vectors):
        note("written", len(chunks))
        return embedded(chunks, vectors)

    TextEncoder.passages, ranks.embedded = counted, writing
    raise SystemExit(reindex.main(argv))
