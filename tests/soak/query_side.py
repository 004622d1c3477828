"""Memory and seconds of training against a large collection: torchrun --nproc-per-node 2 -m tests.soak.query_side.

    python -m tests.soak.query_side                              # one rank, 1,000,000 vectors of 384 numbers
    torchrun --nproc-per-node 2 -m tests.soak.query_side         # the same collection, half of it on each rank
    torchrun --nproc-per-node 2 -m tests.soak.query_side --vectors 10000000

The vectors are random numbers in a file, which every rank maps into memory as trainer.adapt_queries does. A step is one
of the linear map: forward, backward and update. One JSON line: resident memory of the heaviest rank before the steps
and at its peak, pages of the file apart (the system takes these back when it needs memory). Exit code 1 where memory
beside the pages grows by more than LIMIT.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from trainer.engine.join import joined
from trainer.engine.start import Runtime
from trainer.query_side.collection_loss import Documents, Related
from trainer.query_side.documents import share_of
from trainer.query_side.fit import BATCH, RATE, Queries, batch_loss
from trainer.query_side.maps import make_map

SIZE, PAGE = 384, 10_000  # numbers of a vector; vectors written at a time
LIMIT = 256 * 2**20  # bytes of a rank, beside the pages of the file
WATCH_SECONDS = 0.02


def write(file: Path, count: int) -> None:
    """Writes (count, SIZE) float32 of length 1."""
    rng = np.random.default_rng(0)
    with file.open("wb") as handle:
        for start in range(0, count, PAGE):
            vectors = rng.standard_normal((min(PAGE, count - start), SIZE), dtype=np.float32)
            handle.write((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tobytes())


def resident() -> tuple[int, int]:
    """Returns this process's bytes in memory: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return 1024 * kib["RssAnon"], 1024 * (kib["RssFile"] + kib["RssShmem"])


class Peak:
    """The most of resident() while the block runs."""

    def __enter__(self) -> "Peak":
        self.own, self.pages = resident()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(WATCH_SECONDS):
            own, pages = resident()
            self.own, self.pages = max(self.own, own), max(self.pages, pages)

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()


def steps(runtime: Runtime, documents: Documents, vectors: int, count: int) -> list[float]:
    """Makes steps of the linear map, and returns the seconds of each."""
    generator = torch.Generator().manual_seed(1)
    queries = normalize(torch.randn(count * BATCH, SIZE, generator=generator), dim=1)
    answers = torch.randint(vectors, (len(queries),), generator=generator)
    related = Related(torch.arange(len(queries)), answers, torch.ones(len(queries), dtype=torch.bool))
    training = Queries([str(n) for n in range(len(queries))], queries, related)
    model = make_map("linear", SIZE)
    optimizer, seconds = torch.optim.Adam(model.parameters(), RATE), []
    for rows in torch.arange(len(queries)).split(BATCH):
        began = time.perf_counter()
        optimizer.zero_grad()
        batch_loss(runtime.world, model, training, rows, documents, runtime.device).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the file of vectors (default: a temporary folder)")
    args = parser.parse_args()
    with joined("cpu") as runtime, tempfile.TemporaryDirectory(dir=args.folder) as folder:
        world = runtime.world
        file = Path(world.from_first(folder)) / "vectors"
        world.on_first(lambda: write(file, args.vectors))
        documents = share_of(file, args.vectors, SIZE, world.rank, world.size)
        before, _ = resident()
        with Peak() as peak:
            seconds = steps(runtime, documents, args.vectors, args.steps)
        table = world.gather_ints([before, peak.own, peak.pages])
        grew = int((table[:, 1] - table[:, 0]).max())
        if runtime.is_main:
            before, own, pages = (table.amax(dim=0) / 2**20).tolist()
            values = {"vectors": args.vectors, "ranks": world.size, "threads": torch.get_num_threads()}
            values |= {"before_mib": before, "peak_mib": own, "pages_mib": pages, "grew_mib": grew / 2**20}
            print(json.dumps(values | {"seconds_per_step": min(seconds), "seconds": seconds}))
        world.barrier()
    return int(grew > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
