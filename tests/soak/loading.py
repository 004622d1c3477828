"""Host memory and time of loading a model: python -m tests.soak.loading [--hardware TEXT] [--engines …] [--ranks …]
[--base].

A model of 1.5 GB in fp32 on 1, 2 and 4 ranks of ddp, zero2 and zero3, trained whole. Memory is that of all ranks
together, pages that they share counted once (PSS in /proc/*/smaps_rollup), from before the model is loaded until its
engine is ready. The peak must stay below 1.25 times the model's bytes and what the engine then keeps. --base: also a
decoder of 500 M numbers under LoRA, its base in fp32 and in bf16. Prints the tables of docs/evidence/modes_results.md.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import forked, tiny
from tests.launching import ROOT
from tests.multiprocess.planned import bert

LIMIT = 1.25  # of the model's bytes, beside what the engine keeps
SECONDS = 900  # a process group may take
EVERY = 0.02  # seconds between two looks
HEADER = (
    "| engine | ranks | peak, all ranks | kept, all ranks | limit | seconds |\n| --- | --- | --- | --- | --- | --- |"
)
BASE_HEADER = f"| base | bytes of its weights | growth of the process | seconds |\n{'| --- ' * 4}|"


def together(pids: list[int]) -> int:
    """Bytes of all processes together, shared pages counted once."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total


class Watch:
    """The largest memory of processes, seen from a thread."""

    def __init__(self, pids: list[int]):
        self.pids, self.before = pids, together(pids)
        self.most, self.over = self.before, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.over.wait(EVERY):
            self.most = max(self.most, together(self.pids))

    def peak(self) -> int:
        """Ends the watch; returns the growth."""
        self.over.set()
        self.thread.join()
        return self.most - self.before


def measure(run_file: str, engine: str, world: int, out: str) -> None:
    """Loads the model as a run does, on every rank of a group; rank 0 writes what it saw."""
    from trainer.config.loading import load_config
    from trainer.engine.start import process_group, start
    from trainer.preflight.inputs import Inputs
    from trainer.train.setup import prepare

    config = load_config(run_file)
    runtime = start(config, run_file, engine, world)
    with process_group(runtime):
        inputs = Inputs(config)
        assert inputs.plan.rows  # reads the data before the watch begins
        pids = runtime.world.gather_objects(os.getpid())
        watch = Watch(pids) if runtime.is_main else None
        runtime.world.barrier()
        began = time.perf_counter()
        job = prepare(runtime, inputs, resume=False)
        runtime.world.barrier()
        seconds = time.perf_counter() - began
        gc.collect()
        runtime.world.barrier()
        if watch:
            peak, kept = watch.peak(), together(pids) - watch.before
            base = [p for p in job.engine.embedder.parameters() if not p.requires_grad]
            sums = [p.detach().sum() for p in base]  # a mapped weight is memory once it is used
            found = {"peak": peak, "kept": kept, "seconds": seconds, "used": together(pids) - watch.before}
            found["base"] = sum(p.numel() * p.element_size() for p in base)
            assert all(total.isfinite() for total in sums)
            Path(out).write_text(json.dumps(found))
        runtime.world.barrier()
        job.close()


def run(run_file: Path, engine: str, world: int, out: Path) -> dict:
    argv = ["tests.soak.loading:measure", json.dumps([str(run_file), engine, world, str(out)])]
    group = forked.ranks(world, argv, ROOT, merged=True) if world > 1 else [forked.start(argv, ROOT, merged=True)]
    assert forked.wait_for_all(group, SECONDS) == 0, "\n".join(one.stdout[-3000:] for one in group)
    return json.loads(out.read_text())


def write_run(folder: Path, name: str, model: Path, **section) -> Path:
    data = folder / "shards"
    values = {"output_dir": str(folder / name), "model": {"path": str(model), **section}, "data": {"train": str(data)}}
    values["train"] = {"batch_size": 16, "device": "cpu", "micro_batch_tokens": 512}
    (folder / f"{name}.json").write_text(json.dumps(values))
    return folder / f"{name}.json"


def decoder(folder: Path) -> Path:
    """A Qwen3 of 500 M numbers with random weights, as published: in bf16."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 3072}
    made = tf.Qwen3Model(tf.Qwen3Config(vocab_size=150000, hidden_size=1024, num_hidden_layers=28, **heads))
    tiny.model(folder, "qwen3", "last")
    made.to(torch.bfloat16).save_pretrained(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="unnamed hardware")
    parser.add_argument("--engines", nargs="*", default=["ddp", "zero2", "zero3"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--base", action="store_true")
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny.shards(folder / "shards", 64)
        if args.engines:
            wrong += _engines(folder, args)
        if args.base:
            model = decoder(folder / "decoder")
            print(f"\n{BASE_HEADER}")
            for dtype in ("fp32", "bf16"):
                file = write_run(folder, f"base-{dtype}", model, finetune="lora", base_dtype=dtype)
                found = run(file, "cpu", 1, folder / f"{dtype}.out")
                sizes = f"{found['base'] / 1e9:.2f} GB | {found['used'] / 1e9:.2f} GB"
                print(f"| {dtype} | {sizes} | {found['seconds']:.1f} |", flush=True)
    print("\n" + ("\n".join(wrong) or "Every cell within its limit."))
    return 1 if wrong else 0


def _engines(folder: Path, args: argparse.Namespace) -> list[str]:
    model = bert(folder / "model", layers=24, size=1024, vocabulary=70000)
    size, wrong = (model / "model.safetensors").stat().st_size, []
    file = write_run(folder, "full", model)
    print(f"On {args.hardware}. A BERT of {size / 1e9:.2f} GB.\n\n{HEADER}")
    for engine in args.engines:
        for ranks in args.ranks:
            name = "cpu" if engine == "ddp" and ranks == 1 else engine
            found = run(file, name, ranks, folder / f"{engine}-{ranks}.out")
            limit = LIMIT * size + found["kept"]
            sizes = " | ".join(f"{x / 1e9:.2f} GB" for x in (found["peak"], found["kept"], limit))
            print(f"| {name} | {ranks} | {sizes} | {found['seconds']:.1f} |", flush=True)
            if not found["peak"] <= limit:
                wrong.append(f"{name} on {ranks} ranks: a peak of {found['peak'] / 1e9:.2f} GB")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
