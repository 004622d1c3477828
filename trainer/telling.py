"""What a run says of itself while it goes: at its start, and at every step."""

import resource
import sys
from pathlib import Path

import numpy as np
import torch

from trainer.preflight import unused_teachers


def say_start(
    job, resume: bool, folder: Path | None, passed: list[str], topology: dict, trained: tuple[int, int]
) -> None:
    """What a run begins with, for people and the log. job: train.Job; trained: parameters that are, and all."""
    if not job.runtime.is_main:  # what is told costs a look at all rows
        return
    plan = job.plan
    for line in passed:
        job.log.say(f"passed over: {line}")
    if resume:
        job.log.say(
            f"resuming from {folder} after step {job.state.step}" if folder else "no whole checkpoint: from step 0"
        )
    of_sets = [note for data in job.eval_sets.values() for note in data.notes]
    for note in [*job.spec.notes, *unused_teachers(job.config, plan, job.data.rows), *of_sets, *_negatives(job)]:
        job.log.say(note)
    job.log.say(
        f"{plan.rows} rows, global batch {plan.batch_size} over {topology['processes']} process(es) on "
        f"{topology['device']} ({topology['engine']}), {plan.epoch_steps} steps per epoch, {job.total_steps} in all"
    )
    if plan.cut:
        job.log.say(
            f"an epoch is cut after {plan.epoch_steps} of the {plan.steps_per_epoch} steps of a pass over the data"
        )
    if trained[0] < trained[1]:
        job.log.say(f"trainable {_millions(trained[0])} of {_millions(trained[1])} parameters")
    if len(plan.sources) > 1:
        job.log.say(plan.describe_sources())
    if plan.left_out_per_epoch:
        job.log.say(
            f"{plan.left_out_per_epoch} row(s) stay out of each pass (the incomplete last batch), others each time"
        )
    epoch = job.state.step // plan.steps_per_epoch
    meeting = plan.meeting(epoch)
    if meeting:
        job.log.say(
            f"{meeting} row(s) of epoch {epoch + 1} share a text or document with an earlier row of their batch (it "
            "occurs more often than there are batches): " + _MEETING[job.config.loss.mask_duplicates]
        )
    about = {"trained_parameters": trained[0], "parameters": trained[1]}
    job.log.event("start", **topology, **about, step=job.state.step, resumed=folder is not None)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e6:.4f} M"


_MEETING = {
    True: "they are masked, never each other's negatives",
    False: "loss.mask_duplicates is off, so they are each other's negatives",
}


def _negatives(job) -> list[str]:
    """A line where rows have more hard negatives than data.max_hard_negatives lets them train on."""
    most = job.config.data.max_hard_negatives
    if most is None:
        return []
    counts = job.data.rows.bytes_of("negatives", np.arange(len(job.data.rows))).count
    cut, fewer = counts - most, int((counts < most).sum())
    if not (cut > 0).any():
        return []
    return [
        f"data.max_hard_negatives {most}: {int(cut[cut > 0].sum())} hard negatives of {int((cut > 0).sum())} rows stay "
        f"out; {fewer} rows have fewer and train on those they have"
    ]


def log_step(job, step: int, batch, stats, lr: float, applied, seconds: float) -> None:
    rows = batch.global_rows
    values = {
        "loss": stats.loss,
        "lr": lr,
        "grad_norm": applied.grad_norm,
        "temperature": job.objectives[batch.source].temperature,
        "pairs_per_second": rows / seconds,
        "tokens_per_second": stats.values["tokens"] / seconds,
        "memory_gib": _peak_memory(job.runtime.device),
        **stats.values,
    }
    if len(job.plan.sources) > 1:
        values["source"] = batch.source
    if applied.skipped:
        values |= {"skipped": True, "row_ids": job.plan.batch(step)[1].tolist()}
        job.log.say(f"step {step + 1}: gradient not finite, the step was skipped; logs.jsonl holds its row ids")
    job.log.event("step", step=step + 1, epoch=step // job.plan.epoch_steps + 1, **values)
    job.log.scalars("train", values, step + 1)
    shown = f"loss {stats.loss:.4f}  lr {lr:.2e}  grad {applied.grad_norm:.3f}  {rows / seconds:.1f} pairs/s"
    job.log.progress(step + 1, job.total_steps, shown, job.config.train.log_every)


def _peak_memory(device: torch.device) -> float:
    """GiB: allocated on a CUDA device, resident of this process elsewhere; the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
