"""python -m tests.soak.ray_decision ROWS…: memory and seconds of the step of `shard` that decides on all rows.

The spool is synthetic: two keys a row, every tenth row shares one with another row, one in a hundred is a duplicate.
Prints one JSON line for each number of rows. 10^8 rows take 4 GB on the disk of TMPDIR.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from data_prep.sharding.split import SplitPlan
from data_prep.sharding.spool import Part, save_arrays

PART_ROWS = 1_000_000


def write_part(folder: Path, number: int, rows: int) -> Part:
    """Writes the facts of a part that decide on its rows, as spool.read_part does."""
    draw = np.random.default_rng(number)
    same, keys = draw.integers(0, 1 << 63, (rows, 2), np.uint64), draw.integers(0, 1 << 63, (rows, 2), np.int64)
    later = np.arange(100, rows, 100)
    same[later], keys[later] = same[later - 1], keys[later - 1]
    sharing = np.arange(15, rows, 10)
    keys[sharing, 1] = keys[sharing - 7, 1]
    save_arrays(folder / f"{number:06d}.npz", same=same, keys=keys.ravel(), keys_of=np.full(rows, 2, np.int32))
    return Part(number, folder, rows=rows)


def decide(folder: Path, parts: list[Part], results) -> None:
    """Sends peak bytes above those at the start, and seconds."""
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    plan = SplitPlan(folder, parts, False, 0.1, 0)
    splits = plan.assign()
    plan.leaks(splits)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.send((peak - before, time.monotonic() - began, int((splits == 1).sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory(prefix="embedfleet-decision-") as name:
            folder = Path(name)
            sizes = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
            parts = [write_part(folder, number, size) for number, size in enumerate(sizes)]
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=decide, args=(folder, parts, theirs))
            process.start()
            taken, seconds, in_eval = ours.recv()
            process.join()
            line = {"rows": rows, "megabytes": round(taken / 1e6), "bytes_per_row": round(taken / rows, 1)}
            print(json.dumps(line | {"seconds": round(seconds, 1), "eval_rows": in_eval}), flush=True)


if __name__ == "__main__":
    main()
