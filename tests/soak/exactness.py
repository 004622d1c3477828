"""The whole table of the promise: python -m tests.soak.exactness [--hardware TEXT].

Every loss, way to chunk, engine and number of ranks; each cell also trains 20 steps. See tests/multiprocess.
Writes docs/evidence/exactness.jsonl, and the page and the plot beside it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from tests.launching import ROOT
from tests.multiprocess.cells import all_cells
from tests.multiprocess.groups import run_group
from tests.multiprocess.report import problems, summary
from tests.multiprocess.setting import write_setting
from tests.soak import exactness_page

LIMIT = 3600  # seconds a process group may take
ALSO = ("loads", "dropout", "duplicates", "rules", "sources", "retrieval")


def cells_of(group: tuple[str, int], table_cells: list[dict]) -> list[dict]:
    wanted = [kind for kind in ALSO if kind != "loads" or group[1] > 1]
    rounded = (
        [{"kind": "rounded", "run": "infonce", "chunks": "4 chunks"}] if group[0] == "zero3" and group[1] > 1 else []
    )
    return table_cells + [{"kind": kind, "run": "sources"} for kind in wanted] + rounded


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.exactness")
    parser.add_argument("--hardware", default="hardware not named")
    hardware, began, began_at = parser.parse_args().hardware, time.perf_counter(), commit()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference = write_setting(folder)
        for (engine, world), cells in all_cells().items():
            started = time.perf_counter()
            out = folder / f"{engine}-{world}.jsonl"
            results += run_group(folder, engine, world, cells_of((engine, world), cells), out, LIMIT)
            print(f"{engine}-{world}: {time.perf_counter() - started:.0f} s", flush=True)
    rows = [result for result in results if result["cell"]["kind"] == "table"]
    wrong = [problem for result in results for problem in problems(result, reference)]
    if wrong:
        print("\n".join(wrong))
        return 1
    minutes = round((time.perf_counter() - began) / 60, 1)
    run = {"date": date.today().isoformat(), "commit": began_at, "hardware": hardware, "torch": torch.__version__}
    exactness_page.write(exactness_page.data(results, reference, run | {"minutes": minutes}))
    print(summary(rows, reference))
    return 0


if __name__ == "__main__":
    sys.exit(main())
