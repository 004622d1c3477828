"""The optimizer steps, the ends of epochs, and the end of the run."""

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.blending.of_run import Blended, SetOfRun, Tuned, blend_run
from trainer.config.sections import GENERAL, TRAIN_LOSS, WatchConfig
from trainer.distributed.step_row import Wishes
from trainer.distributed.stop import StopRequest
from trainer.engine.optimizer import lr_factor
from trainer.engine.weight_average import averaged
from trainer.evaluation.compare import means
from trainer.evaluation.measure import evaluate_engine
from trainer.evaluation.watched import no_values, watched_names
from trainer.inference.encode import Encoded, gather
from trainer.model_folder.spec import describe_lengths
from trainer.reporting.judge import Case, Model, judge
from trainer.run_dir.before import read_before, take_over
from trainer.run_dir.checkpoint_writer import Clock
from trainer.run_dir.outcome import sample_of
from trainer.run_dir.queries import Values, halves_of, mean_of, watched, write_values
from trainer.run_dir.vectors import drop_vectors, is_small, write_vectors
from trainer.run_dir.verdict import BASE, BLEND, BLENDED, NOT_MEASURED, TRAINED, describe
from trainer.train.checkpointing import Skips, base_writer, epoch_is_over
from trainer.train.early_stopping import Measured
from trainer.train.job import Job
from trainer.train.messages import log_epoch, log_evaluation, log_step, summarise
from trainer.train.step import compute_gradients, compute_loss


def fit(job: Job, request: StopRequest) -> None:
    """Makes the optimizer steps; evaluates and writes a checkpoint at each epoch's end, and where max_steps cuts one.

    Raises Stopped, with a checkpoint written, after the step in which any rank was asked to stop. Collective.
    """
    config, engine, world, progress = job.config, job.engine, job.runtime.world, job.progress
    saves = Clock(config.checkpoint.every_minutes, config.checkpoint.every_steps)
    evaluations = evaluation_clock(config.watch, job.plan.epoch_steps)
    if progress.state.step == 0:
        progress.watch.before(evaluate_start(job))
    elif epoch_is_over(progress.state, job.plan.epoch_steps, job.total_steps):  # stopped before its evaluation
        end_epoch(job)
    elif evaluations.by_steps(progress.state.step) and progress.watch.lacks(progress.state.step):
        evaluate_between(job)
    if progress.stopped_early:  # and then interrupted before final/ was written
        return
    skips = Skips(job.checkpoints, config.train.max_skipped_steps)
    mark = time.perf_counter()
    batches = job.data.batches(progress.state.step, job.total_steps, world.rank, world.size)
    for step, batch in progress.seconds.waiting(batches):
        objective, learned = job.objectives[batch.source], job.temperatures.get(batch.source)
        if learned:
            objective.temperature = learned.value
        sent = world.sent
        wishes = Wishes(request.signal_number, int(saves.due(step + 1)), int(evaluations.due(step + 1)))
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
        if after_step(job, stats.wishes, saves, evaluations):
            mark = time.perf_counter()
        if progress.stopped_early:
            return


def evaluation_clock(watch: WatchConfig, epoch_steps: int) -> Clock:
    """Returns the clock of the evaluations within epochs."""
    share = round((watch.every_epochs or 0) * epoch_steps, 6)  # 0.1 * 30 is a little more than 3
    return Clock(watch.every_minutes, watch.every_steps, share)


def after_step(job: Job, wishes: Wishes, saves: Clock, evaluations: Clock) -> bool:
    """Ends the epoch, or evaluates and writes a checkpoint, where that is due; returns True if it was. Collective."""
    if epoch_is_over(job.progress.state, job.plan.epoch_steps, job.total_steps):
        end_epoch(job)
        saves.done()
        evaluations.done()
        return True
    if wishes.evaluate:
        evaluate_between(job)
        evaluations.done()
    if wishes.save:
        job.checkpoints.save_step(job.checkpoints.snapshot(), background=True)
        saves.done()
    return bool(wishes.evaluate or wishes.save)


def end_epoch(job: Job) -> None:
    """Evaluates, logs the epoch, decides whether to stop early, and writes the checkpoint. Collective."""
    progress, watch = job.progress, job.config.watch
    epoch = (progress.state.step - 1) // job.plan.epoch_steps + 1
    measured = evaluate(job)
    decision = log_epoch(job.log, progress, epoch, measured) if job.runtime.is_main else None
    decision = job.runtime.world.from_first(decision)
    progress.stopped_early = decision.over
    ends = decision.over or progress.state.step == job.total_steps  # final/ will be written from the engine
    job.checkpoints.save_epoch(epoch, as_best=decision.best and not ends)
    if decision.over:
        job.log.say(f"epoch {epoch}: {watch.patience} epoch(s) without a better {watch.metric}; the run ends here")


def evaluate_between(job: Job) -> None:
    """Evaluates within an epoch, and writes the model if it is the best so far. Collective."""
    progress = job.progress
    epoch = (progress.state.step - 1) // job.plan.epoch_steps + 1
    measured = evaluate(job)
    if job.runtime.world.on_first(lambda: progress.watch.measure(epoch, progress.state.step, measured)):
        job.checkpoints.save_best()


def evaluate_start(job: Job) -> Measured:
    """Returns what was measured before training, or what another run of the same model has measured. Collective."""
    measured = job.runtime.world.on_first(lambda: read_before(job.run_dir))
    if not measured:
        return evaluate(job)
    if not job.runtime.is_main:
        return Measured()
    metrics = take_over(job.run_dir, job.log, measured)
    return Measured(metrics or None, _deciding(job, measured["values"]))


def evaluate(job: Job) -> Measured:
    """Returns what was measured; nothing without sets or off rank 0. Collective."""
    step, names = job.progress.state.step, watched_names(job.config)
    source_watched, metric = watched(job.config.watch.metric)
    all_metrics: dict[str, float] = {}
    kept: Values = {}
    with job.progress.seconds.of("evaluation"), averaged(job.engine):
        loss = {"eval_loss": measure_loss(job)} if job.eval_data else {}
    for source, data in [(source, part) for source, whole in job.eval_sets.items() for part in whole.parts]:
        began, spec = time.perf_counter(), job.model.spec.of_source(source)
        with job.progress.seconds.of("evaluation"), averaged(job.engine):
            scores = evaluate_engine(job.engine, job.model.reader, spec, data, names, _keeper(job, source, data))
        if scores is None:
            continue
        metrics = means(scores) | ({} if source else loss)
        log_evaluation(job.log, step, source, data.name, metrics, time.perf_counter() - began)
        all_metrics |= {f"{source}/{name}" if source else name: value for name, value in metrics.items()}
        if source in (source_watched, GENERAL) and isinstance(data, RetrievalSet) and metric in metrics:
            kept[source] = {query: values[metric] for query, values in scores.items()}
    job.runtime.world.on_first(lambda: kept and write_values(job.run_dir, step, kept))
    return Measured(all_metrics or None, _deciding(job, kept))


def _keeper(job: Job, source: str, data: RetrievalSet | ScoredPairs) -> Callable[[Tensor, Encoded], None] | None:
    """Returns a collective function that writes the vectors of the set that the run's report shows; None for others."""
    if source or not isinstance(data, RetrievalSet) or not is_small(data, job.engine.embedder.size):
        return None

    def keep(queries: Tensor, documents: Encoded) -> None:
        gathered, step = gather(job.engine, documents), job.progress.state.step
        if job.runtime.is_main:
            chosen = job.progress.watch.chosen
            drop_vectors(job.run_dir, {0, chosen["step"]} if chosen else {0})
            write_vectors(job.run_dir, step, data, queries.numpy(), gathered.numpy())

    return keep


def measure_loss(job: Job) -> float:
    """Returns the mean loss over the rows of the eval split, in batches of a training step's size. Collective."""
    world, plan = job.runtime.world, job.eval_data.plan
    weighted = rows = 0.0
    for _, batch in job.eval_data.batches(0, plan.steps_per_epoch, world.rank, world.size):
        objective, learned = job.objectives[batch.source], job.temperatures.get(batch.source)
        if learned:
            objective.temperature = learned.value
        weighted += batch.global_rows * compute_loss(job.engine, batch, objective)
        rows += batch.global_rows
    return weighted / rows


def _deciding(job: Job, kept: Values) -> float | None:
    """Returns the watched metric over the choosing queries, if it is of single queries."""
    values = kept.get(watched(job.config.watch.metric)[0])
    if not values or not job.halves or job.config.watch.metric == TRAIN_LOSS:
        return None
    return mean_of(values, [query for query in job.halves.choosing if query in values])


def finish(job: Job) -> Path:
    """Judges the run, blends its best model if it is to, writes the summary and final/; returns the folder final/.
    Collective."""
    sample = sample_of(job.engine.named, job.engine.read)
    world, config = job.runtime.world, job.config
    cases: list[Case] = []  # on rank 0

    def judge_best() -> dict:
        cases.append(case_of(job))
        return judge(job.run_dir, cases[0])

    verdict = world.on_first(judge_best)
    blended = blend_best(job, verdict) if config.watch.blend else None

    def conclude() -> dict:
        judged = judge(job.run_dir, replace(cases[0], blend=blended.of_judge)) if blended else verdict
        summarise(job, judged, describe_lengths(config.model, job.model.spec.rules), sample)
        final = judged["final"]
        drop_vectors(job.run_dir, {0} if final["model"] == BLENDED else {0, final["step"]})  # a blend's were not kept
        return judged

    verdict = world.on_first(conclude)
    base = partial(base_writer, job.model, config, job.runtime.device)
    if blended:
        writers = {BASE: base, BLENDED: lambda: blended.write}
        final = job.checkpoints.save_blended(
            verdict, {BLEND: blended.result}, blended.best, writers, config.watch.keep_last
        )
    else:
        final = job.checkpoints.save_final(verdict, base, config.watch.keep_last)
    job.log.event("end", step=job.progress.state.step)
    job.log.tell_end(job.progress.state.step, final)
    job.log.say(f"final model: {final}\nNext: python -m trainer.report {shlex.quote(str(job.run_dir))}")
    return final


def blend_best(job: Job, verdict: dict) -> Blended | None:
    """Blends the best model with the one before training, after the engine's memory is given back; None where final/
    is not to be a trained model that was measured. Collective."""
    if verdict["verdict"] == NOT_MEASURED or verdict["final"]["model"] != TRAINED:
        job.log.say(f"watch.blend: nothing is blended: {describe(verdict)[0]}")
        return None
    config, step, spec = job.config, verdict["final"]["step"], job.model.spec
    source, metric = watched(config.watch.metric)
    halves = {source: job.halves}
    if general := job.eval_sets.get(GENERAL):
        halves[GENERAL] = halves_of(general.query_ids, general.qrels)
    sets = [SetOfRun(name, job.eval_sets[name], half, spec.of_source(name)) for name, half in halves.items()]
    best = job.checkpoints.put_aside(step, config.watch.keep_last)
    job.release()
    tuned = Tuned(best, step, config.model, job.model.reader)
    with job.progress.seconds.of("evaluation"):
        blended = blend_run(job.runtime, tuned, sets, metric, job.run_dir / "final", job.log.say)
    if job.runtime.is_main:
        facts = {key: blended.result[key] for key in ("metric", "most_lost", "shares")}
        job.log.event("blend", step=step, share=blended.share, **facts)
    return blended


def case_of(job: Job) -> Case:
    """Returns what is to be judged; on rank 0."""
    watch, config = job.progress.watch, job.config
    last = best = Model(job.progress.state.step, job.progress.state.epoch, kept=True)
    chosen = watch.chosen
    if chosen and chosen["step"] != last.step:
        if line := job.checkpoints.lost_best():
            job.log.say(line)
        else:
            best = Model(chosen["step"], chosen["epoch"], kept=chosen["kept"])
    data, unmeasured = job.eval_sets.get(watched(config.watch.metric)[0]), None
    if not watch.chooses:
        unmeasured = "the run began with an earlier version, which kept no values of single queries"
    elif data and not job.halves:
        unmeasured = no_values(data, config)
    elif not data:
        unmeasured = "data.eval is off" if config.data.eval is False else "the run has no evaluation set (data.eval)"
    return Case(config.watch.metric, data.name if data else None, job.halves, best, last, unmeasured)
