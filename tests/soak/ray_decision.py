"""python -m tests.soak.ray_decision ROWS… [--near-duplicates X]: memory and seconds of the decision of `shard`.

The spool is synthetic: two keys a row, every tenth row shares one with another row, one in a hundred is a duplicate.
With --near-duplicates every row has a near duplicate that shares all bands with it, the most that memory can be asked
for. Memory is without mapped files. Prints one JSON line for each number of rows. 10^8 rows take 4 GB on the disk of
TMPDIR, and with near duplicates at 0.85 another 20 GB.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from data_prep.records import Record
from data_prep.sharding.split import SplitPlan
from data_prep.sharding.spool import BATCH_ROWS, Part, arrow_files, save_arrays
from data_prep.shards.columns import arrow_schema, to_batch
from data_prep.texts.near_duplicates import Bands

PART_ROWS = 100_000
LOOK_SECONDS = 0.01  # between two looks at the memory


def write_part(folder: Path, number: int, rows: int, similarity: float | None) -> Part:
    """Writes the facts of a part that decide on its rows, as spool.read_part does."""
    draw, part, facts = np.random.default_rng(number), Part(number, folder, rows=rows), {}
    same, keys = draw.integers(0, 1 << 63, (rows, 2), np.uint64), draw.integers(0, 1 << 63, (rows, 2), np.int64)
    later = np.arange(100, rows, 100)
    same[later], keys[later] = same[later - 1], keys[later - 1]
    sharing = np.arange(15, rows, 10)
    keys[sharing, 1] = keys[sharing - 7, 1]
    if similarity is not None:
        bands = Bands(similarity, sides=2).count
        near_keys = draw.integers(0, 1 << 32, (-(-rows // 2), bands), np.uint32).repeat(2, axis=0)[:rows]
        facts = {"near_keys": near_keys, "near_sizes": np.full((rows, 2), 4, np.int32)}
        write_texts(arrow_files(folder, [part])[0], rows)
    save_arrays(folder / f"{number:06d}.npz", same=same, keys=keys.ravel(), keys_of=np.full(rows, 2, np.int32), **facts)
    return part


def write_texts(file: Path, rows: int) -> None:
    """Writes the rows that candidates are read from; all are equal."""
    schema = arrow_schema()
    batch = to_batch([Record("a query", ["a text"])] * BATCH_ROWS, schema)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for first in range(0, rows, BATCH_ROWS):
            stream.write_batch(batch.slice(0, rows - first))


def decide(folder: Path, parts: list[Part], similarity: float | None, results) -> None:
    """Sends peak bytes above those at the start, and seconds."""
    before, began, peaks = own_memory(), time.monotonic(), [0]
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    plan = SplitPlan(folder, parts, False, 0.1, 0)
    near = plan.leave_out_near(similarity)[0] if similarity is not None else 0
    splits = plan.assign()
    plan.leaks(splits)
    results.send((peaks[0] - before, time.monotonic() - began, near, int((splits == 1).sum())))


def watch(peaks: list[int]) -> None:
    """Keeps the most memory so far in peaks[0]."""
    while True:
        peaks[0] = max(peaks[0], own_memory())
        time.sleep(LOOK_SECONDS)


def own_memory() -> int:
    """Returns the bytes of this process, without mapped files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--near-duplicates", type=float)
    args = parser.parse_args()
    for rows in args.rows:
        with tempfile.TemporaryDirectory(prefix="embedfleet-decision-") as name:
            folder, similarity = Path(name), args.near_duplicates
            sizes = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
            parts = [write_part(folder, number, size, similarity) for number, size in enumerate(sizes)]
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=decide, args=(folder, parts, similarity, theirs)
            )
            process.start()
            taken, seconds, near, in_eval = ours.recv()
            process.join()
            line = {"rows": rows, "megabytes": round(taken / 1e6), "bytes_per_row": round(taken / rows, 1)}
            line |= {"seconds": round(seconds, 1), "near_duplicates": near, "eval_rows": in_eval}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
