"""The whole table of the promise: python -m tests.soak.exactness [--hardware TEXT]. Writes docs/evidence/exactness.md.

Every loss, way to chunk, engine and number of ranks; each cell also trains 20 steps. See tests/multiprocess.
"""

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from tests.launching import ROOT
from tests.multiprocess.cells import all_cells
from tests.multiprocess.groups import run_group
from tests.multiprocess.report import others, problems, summary, table
from tests.multiprocess.setting import write_setting

LIMIT = 3600  # seconds a process group may take
ALSO = ("loads", "dropout", "duplicates", "rules", "sources", "retrieval")

TEXT = """# Exactness

`python -m tests.soak.exactness`, {date}, {hardware}, torch {torch}, {minutes:.0f} minutes.

A two-layer BERT in fp32, dropout 0; 82 rows with ragged hard negatives in batches of 16, of which the last has two
rows: none for a third rank. Everything is held against one process with one padded batch, plain autograd and formulas
that are written down anew (tests/multiprocess/dense.py).

* **chunks**: all texts in one chunk; four chunks, three of them embedded twice; four chunks, all kept, with padding.
* **gradient**: relative error, over all parameters as one vector, of the raw gradient before clipping; the larger of
  a whole and of a last batch.
* **SGD update**: the same of what one unclipped SGD step changes: neither AdamW nor clipping hides a wrong factor.
* **20 AdamW steps**: the largest difference of a loss in 20 clipped steps with warm-up and decay.
* **collectives**: planned and made per step (DeepSpeed's own are not counted).

{summary}

{others}

{table}
"""


def cells_of(group: tuple[str, int], table_cells: list[dict]) -> list[dict]:
    wanted = [kind for kind in ALSO if kind != "loads" or group[1] > 1]
    return table_cells + [{"kind": kind, "run": "sources"} for kind in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.exactness")
    parser.add_argument("--hardware", default="hardware not named")
    hardware, began = parser.parse_args().hardware, time.perf_counter()
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
    text = TEXT.format(
        date=date.today().isoformat(),
        hardware=hardware,
        torch=torch.__version__,
        minutes=(time.perf_counter() - began) / 60,
        summary=summary(rows, reference),
        others="\n".join(f"* {line}" for line in others(results)),
        table=table(rows, reference),
    )
    if wrong:
        print("\n".join(wrong))
        return 1
    (ROOT / "docs/evidence/exactness.md").write_text(text)
    print(summary(rows, reference))
    return 0


if __name__ == "__main__":
    sys.exit(main())
