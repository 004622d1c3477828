"""What a run says of itself: at its start, at every step, at the end of an epoch and of the run."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from trainer.distributed.launcher_claims import fewer_nodes
from trainer.engine.protocol import Applied
from trainer.loss.batch import Batch
from trainer.preflight.losses import unused_teachers
from trainer.train.early_stopping import Verdict
from trainer.train.step import StepStats


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
    for line in fewer_nodes(topology["processes"]):
        job.log.say(line)
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


def log_step(job, step: int, batch: Batch, stats: StepStats, lr: float, applied: Applied, seconds: float) -> None:
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


class Seconds:
    """Where the time goes. data: waiting for batches; steps; evaluation; checkpoints; other: all else."""

    KINDS = ("data", "steps", "evaluation", "checkpoints")

    def __init__(self):
        self.spent, self.began = dict.fromkeys(self.KINDS, 0.0), time.perf_counter()

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[kind] += time.perf_counter() - began

    def waiting(self, items: Iterator) -> Iterator:
        """The items; what it takes until each is there counts as data."""
        while True:
            with self.of("data"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def take(self) -> dict[str, float]:
        """Seconds since the last call, by kind; their sum is `whole`."""
        now = time.perf_counter()
        found = self.spent | {"other": now - self.began - sum(self.spent.values()), "whole": now - self.began}
        self.spent, self.began = dict.fromkeys(self.KINDS, 0.0), now
        return {kind: round(seconds, 3) for kind, seconds in found.items()}


def log_epoch(job, epoch: int, metrics: dict[str, float] | None) -> Verdict:
    """The epoch in the log, with its warnings; rank 0. The time of its checkpoint is in the next epoch's."""
    steps = [event for event in job.log.events("step") if event["epoch"] == epoch]
    mean = {name: _mean(event[name] for event in steps) for name in ("loss", *SIMILARITIES)}
    margin = None if None in mean.values() else mean[SIMILARITIES[0]] - mean[SIMILARITIES[1]]
    verdict = job.watch.see(epoch, metrics, mean["loss"], margin)
    seconds = job.seconds.take()
    facts = {"train_loss": mean["loss"], **{name: mean[name] for name in SIMILARITIES}}
    job.log.event("epoch", epoch=epoch, step=job.state.step, **facts, evaluation=metrics, seconds=seconds)
    job.log.scalars("epoch", facts, job.state.step)
    for warning in verdict.warnings:
        job.log.event("warning", epoch=epoch, step=job.state.step, text=warning)
        job.log.say(f"warning: {warning}")
    job.log.write_epoch_files()
    return verdict


SIMILARITIES = ("positive_similarity", "negative_similarity")


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there: a skipped step has none."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def summarise(job, final: Path) -> None:
    """training_summary_report.json, and what people should know at the end; rank 0."""
    steps, best = job.log.events("step"), job.watch.summary()
    spent = [event["seconds"] for event in job.log.events("epoch")] + [job.seconds.take()]
    if best:
        kept = [job.run_dir / "best", job.run_dir / f"checkpoint-epoch-{best['epoch']}"]
        best["model"] = next((str(folder) for folder in kept if folder.is_dir()), None)
        told = f" (before training {best['before_training']:.4f})" if best["before_training"] is not None else ""
        job.log.say(
            f"best epoch {best['epoch']}: {best['metric']} {best['value']:.4f}{told}; {best['model'] or 'not kept'}"
        )
    job.log.write_summary(
        {
            "final_model": str(final),
            "best": best,
            "stopped_early": job.over,
            "steps": len(steps),
            "epochs": job.state.epoch,
            "updates": job.state.updates,
            "first_loss": steps[0]["loss"],
            "last_loss": steps[-1]["loss"],
            "pairs_per_second": sum(e["pairs_per_second"] for e in steps) / len(steps),
            "truncated_texts": sum(e["truncated_texts"] for e in steps),
            "masked_negatives": sum(e["masked_negatives"] for e in steps),
            "seconds": {kind: round(sum(some.get(kind, 0) for some in spent), 3) for kind in spent[-1]},
            "warnings": [event["text"] for event in job.log.events("warning")],
        }
    )
    cut, texts = sum(e["truncated_texts"] for e in steps), sum(e["texts"] for e in steps)
    if cut:
        job.log.say(f"{cut} of {texts} texts were longer than the model's limit and were cut")
