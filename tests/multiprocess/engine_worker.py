"""Run on every rank by test_engines.py: trains through the real code and writes what the test compares.

Steps 0..STEPS-1 are trained as they are; the gradient of step 0 is kept before clipping. Then two more gradients are
taken with a wrong factor planted (W and 1/W), to show that the comparison would see one.
"""

import json
import sys
from pathlib import Path

import torch

from trainer.config import load_config
from trainer.runtime import process_group, start
from trainer.step import compute_gradients
from trainer.train import prepare

STEPS = 20


def main(run_file: str, engine: str, processes: int, out: str) -> None:
    config = load_config(run_file, [f"output_dir={out}/run"])
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime):
        job = prepare(runtime, config, resume=False)
        losses, norms, calls, gradients = [], [], [], {}
        for step, batch in job.data.batches(0, STEPS + 2, runtime.world.rank, runtime.world.size):
            planted = {STEPS: processes, STEPS + 1: 1 / processes}.get(step, 1.0)
            job.engine.gradient_factor *= planted
            before = runtime.world.calls
            stats = compute_gradients(job.engine, batch, config.loss, config.train.micro_batch_tokens)
            job.engine.gradient_factor /= planted
            calls.append(runtime.world.calls - before)
            if step in (0, STEPS, STEPS + 1):
                gradients |= {f"{step}.{name}": t for name, t in job.engine.gradients().items()}
            if step >= STEPS:
                job.engine.apply(0.0)  # the weights stay where step STEPS left them
                continue
            losses.append(stats.loss)
            norms.append(job.engine.apply(config.optim.lr).grad_norm)
        weights = job.engine.weights()
        if runtime.is_main:
            torch.save({"gradients": gradients, "weights": weights}, Path(out) / "tensors.pt")
            values = {"losses": losses, "norms": norms, "calls": calls, "engine": runtime.engine}
            (Path(out) / "values.json").write_text(json.dumps(values))
        job.log.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
