"""Measures planning by the number of rows: python -m tests.soak.planner_scale

Sidecar files of 10^5, 10^6 and 10^7 rows, 1 % of them in groups of four that share a text, made with numpy; a fresh
process for each opens them and plans. Prints a table, the bytes per row, and what follows for 10^9 rows.
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.shards import shared_keys as sharing
from trainer.planner.plan import BatchPlan

BATCH_SIZE = 512
BATCHES = 1000  # timed, at random steps of the first epoch
ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = ("open_ms", "pass_ms", "reach_ms", "batch_ms", "own_mib", "mapped_mib", "resident_mib", "peak_mib")


def write_sidecars(folder: Path, rows: int, interleaved: bool = False) -> None:
    """The files that planning reads. interleaved: two sources that take turns, else one."""
    folder.mkdir(parents=True)
    names = ["a", "b"] if interleaved else ["a"]
    sharing_rows = np.random.default_rng(0).permutation(rows)[: rows // 100]
    keys = np.arange(len(sharing_rows)) // 4
    sources = sharing.by_source(names, np.arange(rows) % len(names), sharing_rows, keys)
    sharing.write(folder, sources)
    counts = [{s.name: len(s.rows) for s in sources}, {s.name: len(s.shared) for s in sources}]
    (folder / "counts.json").write_text(json.dumps(counts))


def measured(folder: Path) -> dict[str, float]:
    """Times in ms and memory in MiB of planning in a fresh process; memory without what the imports take."""
    command = [sys.executable, "-m", "tests.soak.planner_scale", str(folder)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def _measure(folder: Path) -> dict[str, float]:
    counts = json.loads((folder / "counts.json").read_text())
    before = _memory()
    times = [time.perf_counter()]
    plan = BatchPlan(tuple(sharing.read(folder, *counts)), BATCH_SIZE, "f", 0)
    times.append(time.perf_counter())
    meeting = plan.meeting(0)
    times.append(time.perf_counter())
    for step in np.random.default_rng(1).integers(0, plan.steps_per_epoch, BATCHES).tolist():
        plan.batch(step)
    times.append(time.perf_counter())
    after = _memory()
    fresh = BatchPlan(tuple(sharing.read(folder, *counts)), BATCH_SIZE, "f", 0)
    fresh.batch(7 * fresh.steps_per_epoch + 5)
    times.append(time.perf_counter())
    opened, prepared, batches, reached = (1000 * (b - a) for a, b in pairwise(times))
    own, mapped, resident = (after[name] - before[name] for name in ("RssAnon", "RssFile", "VmRSS"))
    return {
        "open_ms": opened,
        "pass_ms": prepared,
        "reach_ms": reached,
        "batch_ms": batches / BATCHES,
        "own_mib": own,
        "mapped_mib": mapped,
        "resident_mib": resident,
        "peak_mib": after["VmHWM"] - before["VmRSS"],
        "meeting": meeting,
    }


def _memory() -> dict[str, float]:
    """MiB by the names of /proc/self/status (Linux)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[-1] == "kB"}


def main() -> None:
    sizes = (10**5, 10**6, 10**7)
    for interleaved in (False, True):
        print("two interleaved sources" if interleaved else "one source")
        print(" ".join(f"{name:>13}" for name in ("rows", *COLUMNS)))
        found = []
        for rows in sizes:
            with tempfile.TemporaryDirectory() as folder:
                write_sidecars(Path(folder) / "s", rows, interleaved)
                found.append(measured(Path(folder) / "s"))
            print(" ".join(f"{value:>13}" for value in (rows, *(f"{found[-1][name]:.3f}" for name in COLUMNS))))
        for name in ("own_mib", "resident_mib", "peak_mib"):
            slope = np.polyfit(sizes, [each[name] * 2**20 for each in found], 1)[0]
            print(f"{name}: {slope:.3f} bytes per row, {slope * 1e9 / 2**20:.0f} MiB at 10^9 rows")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_measure(Path(sys.argv[1]))))
    else:
        main()
