"""The optimizer steps, the ends of epochs, and the end of the run."""

import time
from dataclasses import replace
from pathlib import Path

from trainer.config.sections import lr_factor
from trainer.distributed.step_row import Wishes
from trainer.distributed.stop import StopRequest
from trainer.engine.weight_average import averaged
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_engine
from trainer.evaluation.watched import watched_names
from trainer.model_folder.spec import describe_lengths
from trainer.run_dir.checkpoint_writer import Clock
from trainer.run_dir.outcome import sample_of
from trainer.train.checkpointing import Skips, epoch_is_over
from trainer.train.job import Job
from trainer.train.messages import log_epoch, log_step, summarise
from trainer.train.step import compute_gradients


def fit(job: Job, request: StopRequest) -> None:
    """Makes the optimizer steps; evaluates and writes a checkpoint at each epoch's end, and where max_steps cuts one.

    Raises Stopped, with a checkpoint written, after the step in which any rank was asked to stop. Collective.
    """
    config, engine, world, progress = job.config, job.engine, job.runtime.world, job.progress
    if progress.state.step == 0:
        progress.watch.before(evaluate(job))
    elif epoch_is_over(progress.state, job.plan.epoch_steps, job.total_steps):  # stopped before its evaluation
        end_epoch(job)
    if progress.stopped_early:  # and then interrupted before final/ was written
        return
    clock, skips = Clock(config.checkpoint), Skips(job.checkpoints, config.train.max_skipped_steps)
    mark = time.perf_counter()
    batches = job.data.batches(progress.state.step, job.total_steps, world.rank, world.size)
    for step, batch in progress.seconds.waiting(batches):
        objective, learned = job.objectives[batch.source], job.temperatures.get(batch.source)
        if learned:
            objective.temperature = learned.value
        sent = world.sent
        wishes = Wishes(request.signal_number, int(clock.due(step + 1)))
        with progress.seconds.of("steps"):
            stats = compute_gradients(engine, batch, objective, job.micro_batch_tokens, wishes)
        if job.runtime.engine == "ddp":  # DeepSpeed's own traffic is not seen
            stats.values["bytes_sent"] = world.sent - sent
        factor = lr_factor(step, job.total_steps, config.optim)
        lr = config.optim.lr * factor
        with progress.seconds.of("steps"):
            applied = engine.apply(lr)
        if learned and not applied.skipped:
            learned.update(stats.temperature_grad, factor)
        now = time.perf_counter()
        log_step(job, step, batch, stats, lr, objective.temperature, applied, now - mark)
        mark = now
        world.report(step + 1)
        progress.state = replace(progress.state, step=step + 1, updates=progress.state.updates + (not applied.skipped))
        skips.count(applied.skipped)
        if stats.wishes.stop:
            raise job.checkpoints.stop(stats.wishes.stop)
        if epoch_is_over(progress.state, job.plan.epoch_steps, job.total_steps):
            end_epoch(job)
            if progress.stopped_early:
                return
        elif stats.wishes.save:
            job.checkpoints.save_step(job.checkpoints.snapshot(), background=True)
        else:
            continue
        clock.written()
        mark = time.perf_counter()


def end_epoch(job: Job) -> None:
    """Evaluates, logs the epoch, decides whether to stop early, and writes the checkpoint. Collective."""
    progress, watch = job.progress, job.config.watch
    epoch = (progress.state.step - 1) // job.plan.epoch_steps + 1
    metrics = evaluate(job)
    verdict = log_epoch(job.log, progress, epoch, metrics) if job.runtime.is_main else None
    verdict = job.runtime.world.from_first(verdict)
    progress.stopped_early = verdict.over
    job.checkpoints.save_epoch(epoch, as_best=verdict.better and watch.keep_best)
    if verdict.over:
        job.log.say(f"epoch {epoch}: {watch.patience} epoch(s) without a better {watch.metric}; the run ends here")


def evaluate(job: Job) -> dict[str, float] | None:
    """Returns metrics, those of single sources as `source/metric`; None without sets or off rank 0. Collective."""
    log, step = job.log, job.progress.state.step
    all_metrics: dict[str, float] = {}
    names = watched_names(job.config)
    parts = [(source, part) for source, whole in job.eval_sets.items() for part in whole.parts]
    for source, data in parts:
        began = time.perf_counter()
        with job.progress.seconds.of("evaluation"), averaged(job.engine):
            scores = evaluate_engine(job.engine, job.model.reader, job.model.spec, data, names)
        if scores is None:
            continue
        metrics = means(scores)
        named = {"source": source} if source else {}
        log.event("evaluation", step=step, **named, **metrics, seconds=time.perf_counter() - began)
        log.scalars(f"evaluation/{source}" if source else "evaluation", metrics, step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.say(f"evaluation after step {step} on {data.name}: {shown}")
        all_metrics |= {f"{source}/{name}" if source else name: value for name, value in metrics.items()}
    return all_metrics or None


def finish(job: Job) -> Path:
    """Writes final/ and the summary; returns the folder final/. Collective."""
    with job.progress.seconds.of("checkpoints"):
        final = job.checkpoints.save_model("final")
    sample = sample_of(job.engine.named, job.engine.read)
    if job.runtime.is_main:
        lengths = describe_lengths(job.config.model, job.model.spec.rules)
        summarise(job.log, job.progress, job.run_dir, final, lengths, sample)
    job.log.event("end", step=job.progress.state.step)
    job.log.say(f"final model: {final}")
    return final
