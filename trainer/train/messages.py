"""Messages and log of a run: at its start, at every step, at the end of an epoch and of the run."""

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.common.files import write_json
from data_prep.shards.folder import Rows
from trainer.config.recipe import recipe
from trainer.config.sections import TRAIN_LOSS, DataConfig
from trainer.distributed.launcher_claims import fewer_nodes
from trainer.engine.protocol import Applied, Engine
from trainer.inference.guide import Guide
from trainer.loss.batch import Batch
from trainer.model.base_dtype import Rounded
from trainer.planner.plan import BatchPlan
from trainer.preflight.losses import idle_rows, unused_teachers
from trainer.run_dir.log import RunLog
from trainer.run_dir.outcome import is_better, movement, nothing_learnt
from trainer.run_dir.queries import watched
from trainer.run_dir.verdict import TRAINED, VERDICT, describe
from trainer.train.early_stopping import Decision, Measured
from trainer.train.job import Job, Progress
from trainer.train.step import StepStats

SIMILARITIES = ("positive_similarity", "negative_similarity")


@dataclass(frozen=True)
class Start:
    """The state that a run starts from, and where it runs."""

    resume: bool  # --resume was given
    checkpoint: Path | None  # the one that is resumed
    passed_over: list[str]  # a line per damaged checkpoint
    topology: dict  # processes, engine, device
    trained: int  # parameters
    parameters: int
    own_loss: bool  # a function replaces the run file's losses
    weights: str | None  # outcome.sample_of the trained weights; None on a resumed run
    guides: list[Guide]  # of the losses


def say_start(job: Job, start: Start) -> None:
    """Prints what people should know of a run that starts, and logs its start event. Rank 0 only acts."""
    if not job.runtime.is_main:  # the notes cost a look at all rows
        return
    log, plan, step = job.log, job.plan, job.progress.state.step
    lines = [f"passed over: {line}" for line in start.passed_over]
    if start.checkpoint:
        lines.append(f"resuming from {start.checkpoint} after step {step}")
    elif start.resume:
        lines.append("no whole checkpoint: from step 0")
    lines += [*recipe(job.config, start.own_loss), *job.model.spec.notes]
    lines += unused_teachers(job.config, plan, job.data.rows)
    lines += idle_rows(job.config, plan, job.data.rows)
    lines += [_guide_line(guide, job.engine, start.parameters) for guide in start.guides]
    lines += [note for data in job.eval_sets.values() for note in data.notes]
    lines += _halves(job)
    lines += _negatives(job.config.data, job.data.rows, plan)
    if (fraction := job.config.data.fraction) < 1:
        lines.append(f"data.fraction {fraction:g}: {plan.rows:,} of {len(job.data.rows):,} rows, drawn by document")
    lines += _plan_lines(plan, job.total_steps, start)
    if reason := job.engine.embedder.padded_because:
        lines.append(f"texts are padded to the longest of their chunk, not joined end to end: {reason}")
    lines += _base_lines(job.engine.embedder.rounded)
    epoch = step // plan.steps_per_epoch
    if meeting := plan.meeting(epoch):
        masked = job.config.loss.mask_duplicates
        fate = "they are masked, never" if masked else "loss.mask_duplicates is off, so they are"
        lines.append(
            f"{meeting} row(s) of epoch {epoch + 1} share a text or document with an earlier row of their batch (it "
            f"occurs more often than the epoch has batches): {fate} each other's negatives"
        )
    for line in lines:
        log.say(line)
    counts = {"trained_parameters": start.trained, "parameters": start.parameters}
    sample = {"weights": start.weights} if start.weights else {}
    log.event("start", **start.topology, **counts, step=step, resumed=start.checkpoint is not None, **sample)


def _halves(job: Job) -> list[str]:
    """Returns a line about the queries that choose the best model."""
    metric = job.config.watch.metric
    if job.halves is None or metric == TRAIN_LOSS:
        return []
    return [job.halves.note(job.eval_sets[watched(metric)[0]].name)]


def _plan_lines(plan: BatchPlan, total_steps: int, start: Start) -> list[str]:
    world = start.topology
    engine = "" if world["engine"] == world["device"] else f" ({world['engine']})"
    lines = [
        f"{plan.rows} rows, global batch {plan.batch_size} over {world['processes']} process(es) on "
        f"{world['device']}{engine}, {plan.epoch_steps} steps per epoch, {total_steps} in all",
        *fewer_nodes(world["processes"]),
    ]
    if plan.cut:
        whole = f"{plan.steps_per_epoch} steps of a pass over the data"
        lines.append(f"an epoch is cut after {plan.epoch_steps} of the {whole}")
    if start.trained < start.parameters:
        lines.append(f"trainable {_millions(start.trained)} of {_millions(start.parameters)} parameters")
    if len(plan.sources) > 1:
        lines.append(plan.describe_sources())
    if count := plan.left_out_per_epoch:
        lines.append(f"{count} row(s) stay out of each pass (the incomplete last batch), others each time")
    return lines


def _base_lines(rounded: Rounded | None) -> list[str]:
    if not rounded:
        return []
    lost = f"{rounded.changed} of {len(rounded.parameters)} weights lost digits"
    return [
        f"frozen weights in bf16: {2 * rounded.numbers / 1e9:.3g} GB in place of {4 * rounded.numbers / 1e9:.3g} GB "
        f"({lost if rounded.changed else 'no weight lost digits'}); {_millions(rounded.kept)} frozen numbers stay fp32"
    ]


def _guide_line(guide: Guide, engine: Engine, parameters: int) -> str:
    """Says what a guide costs. A training step makes at least three passes, forward and backward, through its model."""
    table = engine.embedder.backbone.get_input_embeddings().weight
    own = max(1, parameters - getattr(table, "ds_numel", table.numel()))
    share = guide.forward_numbers / (3 * own)
    size = f"{_millions(guide.parameters)} parameters, {4 * guide.parameters / 1e9:.2g} GB on every rank"
    cost = f"about {share:.0%} more computation in a step"
    return f"loss.guide {guide.path}: embeds every text of a batch once more, without gradient: {size}, {cost}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e6:.4f} M"


_LEFT_OUT = {"random": "others each time", "first": "always the same"}


def _negatives(data: DataConfig, rows: Rows, plan: BatchPlan) -> list[str]:
    """Returns a line if rows have more hard negatives than data.max_hard_negatives."""
    most = data.max_hard_negatives
    if most is None:
        return []
    counts = rows.bytes_of("negatives", np.concatenate([part.rows for part in plan.parts])).count
    cut, fewer = (counts - most).clip(min=0), int((counts < most).sum())
    if not cut.any():
        return []
    return [
        f"data.max_hard_negatives {most}: {int(cut.sum())} hard negatives of {np.count_nonzero(cut)} rows stay "
        f"out of each epoch, {_LEFT_OUT[data.negative_sampling]}; {fewer} rows have fewer and train on those they have"
    ]


def log_step(
    job: Job, step: int, batch: Batch, stats: StepStats, lr: float, temperature: float, applied: Applied, seconds: float
) -> None:
    """Logs and prints a step, counted from 0. temperature: of the loss. seconds: since the step before."""
    log, plan, rows = job.log, job.plan, batch.global_rows
    values = {
        "loss": stats.loss,
        "lr": lr,
        "grad_norm": applied.grad_norm,
        "temperature": temperature,
        "pairs_per_second": rows / seconds,
        "tokens_per_second": stats.values["tokens"] / seconds,
        "memory_gib": _peak_memory(job.runtime.device),
        **stats.values,
    }
    if len(plan.sources) > 1:
        values["source"] = batch.source
    if applied.skipped:
        values |= {"skipped": True, "row_ids": plan.batch(step)[1].tolist()}
        log.say(f"step {step + 1}: gradient not finite, the step was skipped; logs.jsonl holds its row ids")
    log.event("step", step=step + 1, epoch=step // plan.epoch_steps + 1, **values)
    log.scalars("train", values, step + 1)
    shown = f"loss {stats.loss:.4f}  lr {lr:.2e}  grad {applied.grad_norm:.3f}  {rows / seconds:.1f} pairs/s"
    log.progress(step + 1, job.total_steps, shown, job.config.train.log_every)


def _peak_memory(device: torch.device) -> float:
    """Peak GiB so far: allocated on a CUDA device, elsewhere resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def log_evaluation(log: RunLog, step: int, source: str, name: str, metrics: dict[str, float], seconds: float) -> None:
    """Writes and shows the metrics of one set. source: whose set it is; "" for that of the whole run."""
    log.event("evaluation", step=step, **({"source": source} if source else {}), **metrics, seconds=seconds)
    log.scalars(f"evaluation/{source}" if source else "evaluation", metrics, step)
    shown = "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
    log.say(f"evaluation after step {step} on {name}: {shown}")


def log_epoch(log: RunLog, progress: Progress, epoch: int, measured: Measured) -> Decision:
    """Logs an epoch and its warnings; rank 0. The time of its checkpoint counts to the next epoch."""
    steps = [event for event in log.steps(log.epoch_start) if event["epoch"] == epoch]
    mean = {name: _mean(event[name] for event in steps) for name in ("loss", *SIMILARITIES)}
    margin = None if None in mean.values() else mean[SIMILARITIES[0]] - mean[SIMILARITIES[1]]
    step = progress.state.step
    decision = progress.watch.see(epoch, step, measured, mean["loss"], margin)
    facts = {"train_loss": mean["loss"], **{name: mean[name] for name in SIMILARITIES}}
    deciding = {} if measured.deciding is None else {"deciding": measured.deciding}
    found = {"evaluation": measured.metrics, **deciding}
    log.event("epoch", epoch=epoch, step=step, **facts, **found, seconds=progress.seconds.take())
    log.scalars("epoch", facts, step)
    for warning in decision.warnings:
        log.event("warning", epoch=epoch, step=step, text=warning)
        log.say(f"warning: {warning}")
    log.write_epoch_files()
    return decision


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]  # a skipped step has none
    return sum(present) / len(present) if present else None


def summarise(job: Job, verdict: dict, lengths: str, weights: str) -> None:
    """Says and logs the verdict, and writes verdict.json and training_summary_report.json; rank 0. It comes before
    final/, which ends the run.

    verdict: of the judge; gets `learnt`. lengths: describes the maximum lengths of texts, with their owners. weights:
    outcome.sample_of the trained ones."""
    log, progress, run_dir = job.log, job.progress, job.run_dir
    keys = ("loss", "lr", "grad_norm", "skipped", "pairs_per_second", "truncated_texts", "masked_negatives", "texts")
    steps = [{key: event.get(key) for key in keys} for event in log.steps()]
    losses, _, _, _, pairs, truncated, masked, texts = zip(*(event.values() for event in steps))
    spent = [event["seconds"] for event in log.events("epoch")] + [progress.seconds.take()]
    best = _best(log, progress.watch.summary(), verdict)
    began = next((event["weights"] for event in log.events("start") if "weights" in event), None)
    nothing = nothing_learnt(steps, log.events("epoch"), best, movement(began, weights))
    verdict["learnt"] = nothing is None
    _say_verdict(log, verdict, nothing, progress.state.step)
    write_json(run_dir / VERDICT, verdict)
    write_json(
        run_dir / "training_summary_report.json",
        {
            "final_model": str(run_dir / "final"),
            "verdict": verdict,
            "learnt": verdict["learnt"],
            "best": best,
            "stopped_early": progress.stopped_early,
            "steps": len(losses),
            "epochs": progress.state.epoch,
            "updates": progress.state.updates,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "pairs_per_second": sum(pairs) / len(pairs),
            "truncated_texts": sum(truncated),
            "masked_negatives": sum(masked),
            "seconds": {kind: round(sum(some.get(kind, 0) for some in spent), 3) for kind in spent[-1]},
            "warnings": [event["text"] for event in log.events("warning")],
            "evaluations": log.events("evaluation"),
        },
    )
    if sum(truncated):
        log.say(f"truncated {sum(truncated):,} of {sum(texts):,} texts: {lengths}")


def _say_verdict(log: RunLog, verdict: dict, nothing: str | None, step: int) -> None:
    """nothing: why the run learnt nothing, a warning."""
    log.event("verdict", step=step, **verdict)
    for line in describe(verdict):
        log.say(line)
    if nothing:
        log.event("warning", step=step, text=nothing)
        log.say(f"warning: {nothing}")


def _best(log: RunLog, best: dict | None, verdict: dict) -> dict | None:
    """Completes Watch.summary() by where the model is, and whether it is better than the one before training."""
    if best is None:
        return None
    final, number = verdict["final"], best["epoch"]
    end = next((event["step"] for event in log.events("epoch") if event["epoch"] == number), None)
    step, epoch = best.get("step", end), log.run_dir / f"checkpoint-epoch-{number}"
    in_final = final["model"] == TRAINED and final["step"] == step
    kept = log.run_dir / "final" if in_final else epoch if step == end and epoch.is_dir() else None
    return best | {"model": kept and str(kept), "better_than_before": is_better(best)}
