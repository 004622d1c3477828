"""Definitions of this subject."""

import time
from dataclasses import replace
from pathlib import Path

from trainer.config.sections import lr_factor
from trainer.distributed.step_row import Wishes
from trainer.distributed.stop import StopRequest
from trainer.engine.weight_average import averaged
from trainer.inference.evaluation import evaluate_engine
from trainer.inference.metrics import means
from trainer.run_dir.checkpoint_writer import Clock
from trainer.train.checkpointing import Skips, epoch_is_over, save_step, snapshot, stop_here
from trainer.train.messages import log_epoch, log_step, summarise
from trainer.train.setup import Job
from trainer.train.step import compute_gradients


def fit(job: Job, request: StopRequest) -> None:
    """The optimizer steps; evaluation and a checkpoint at each epoch's end (and where max_steps cuts one short).

    Raises Stopped, with a checkpoint written, after the step in which any rank was asked to stop.
    """
    config, engine, world = job.config, job.engine, job.runtime.world
    if job.state.step == 0:
        job.watch.before(evaluate(job))
    elif epoch_is_over(job):  # the run was stopped between the last step of an epoch and its evaluation
        end_epoch(job)
    if job.over:  # stopped early, and then before final/ was written
        return
    clock, skips = Clock(config.checkpoint), Skips(job)
    mark = time.perf_counter()
    batches = job.data.batches(job.state.step, job.total_steps, world.rank, world.size)
    for step, batch in job.seconds.waiting(batches):
        objective, learned = job.objectives[batch.source], job.temperatures.get(batch.source)
        if learned:
            objective.temperature = learned.value
        sent = world.sent
        wishes = Wishes(request.signal_number, int(clock.due(step + 1)))
        with job.seconds.of("steps"):
            stats = compute_gradients(engine, batch, objective, job.micro_batch_tokens, wishes)
        if job.runtime.engine == "ddp":  # DeepSpeed's own traffic is not seen
            stats.values["bytes_sent"] = world.sent - sent
        factor = lr_factor(step, job.total_steps, config.optim)
        with job.seconds.of("steps"):
            applied = engine.apply(config.optim.lr * factor)
        if learned and not applied.skipped:
            learned.update(stats.temperature_grad, factor)
        now = time.perf_counter()
        log_step(job, step, batch, stats, config.optim.lr * factor, applied, now - mark)
        mark = now
        world.report(step + 1)
        job.state = replace(job.state, step=step + 1, updates=job.state.updates + (not applied.skipped))
        skips.count(applied.skipped)
        if stats.wishes.stop:
            raise stop_here(job, stats.wishes.stop)
        if epoch_is_over(job):
            end_epoch(job)
            if job.over:
                return
        elif stats.wishes.save:
            with job.seconds.of("checkpoints"):
                save_step(job, snapshot(job), background=True)
        else:
            continue
        clock.written()
        mark = time.perf_counter()


def end_epoch(job: Job) -> None:
    epoch = (job.state.step - 1) // job.plan.epoch_steps + 1
    metrics = evaluate(job)
    verdict = job.runtime.world.from_first(log_epoch(job, epoch, metrics) if job.runtime.is_main else None)
    job.over = verdict.over
    with job.seconds.of("checkpoints"):
        if verdict.better and job.config.watch.keep_best:
            with averaged(job.engine):
                job.writer.save("best", None)
        job.state = replace(snapshot(job), epoch=epoch)
        folder = job.writer.save(f"checkpoint-epoch-{epoch}", job.state)
    job.log.say(f"epoch {epoch}: checkpoint in {folder}")
    if verdict.over:
        watched = job.config.watch
        job.log.say(f"epoch {epoch}: {watched.patience} epoch(s) without a better {watched.metric}; the run ends here")


def evaluate(job: Job) -> dict[str, float] | None:
    """Metrics on the evaluation sets, those of single sources as `source/metric`. Collective.

    None where there is no set, and on other ranks than the first.
    """
    found: dict[str, float] = {}
    for source, data in job.eval_sets.items():
        began = time.perf_counter()
        with job.seconds.of("evaluation"), averaged(job.engine):
            per_query = evaluate_engine(job.engine, job.reader, job.spec, data)
        if per_query is None:
            continue
        metrics = means(per_query)
        about = {"source": source} if source else {}
        job.log.event("evaluation", step=job.state.step, **about, **metrics, seconds=time.perf_counter() - began)
        job.log.scalars(f"evaluation/{source}" if source else "evaluation", metrics, job.state.step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        job.log.say(f"evaluation after step {job.state.step} on {data.name}: {shown}")
        found |= {f"{source}/{name}" if source else name: value for name, value in metrics.items()}
    return found or None


def finish(job: Job) -> Path:
    """Writes final/ and the summary."""
    with job.seconds.of("checkpoints"), averaged(job.engine):
        final = job.writer.save("final", None)
    if job.runtime.is_main:
        summarise(job, final)
    job.log.event("end", step=job.state.step)
    job.log.say(f"final model: {final}")
    return final
