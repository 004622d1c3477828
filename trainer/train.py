"""A training run, top to bottom: set up, fit, finish."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.progress import say
from data_prep.retrieval_sets import RetrievalSet, load_set
from trainer import checkpoint
from trainer.adapters import check_base
from trainer.agreement import check_agreement, facts_of
from trainer.average import averaged
from trainer.checkpoint import Clock, Writer
from trainer.config import RunConfig, lr_factor
from trainer.data import TrainData
from trainer.evaluate import evaluate_engine
from trainer.folder import ModelSpec, weights_sha256
from trainer.interrupts import StopRequest, listening, remove_marker
from trainer.memory import resolve_budget
from trainer.model import Embedder, count_parameters, load_embedder
from trainer.objective import Objective, import_functions
from trainer.optim import LearnedTemperature
from trainer.planner import PLAN_VERSION, BatchPlan, total_steps
from trainer.preflight import check_run, eval_paths, make_plan
from trainer.retrieval import means
from trainer.runlog import RunLog, chosen_budget, describe_run, write_json
from trainer.runtime import Runtime, process_group, start
from trainer.saving import Skips, epoch_is_over, model_writer, save_step, snapshot, stop_here
from trainer.state import TrainState, damage, newest, read_state
from trainer.step import compute_gradients, planned_collectives
from trainer.telling import Seconds, log_epoch, log_step, say_start, summarise
from trainer.watch import Watch


@dataclass
class Job:
    """Everything a run needs, made once in prepare()."""

    config: RunConfig
    runtime: Runtime
    engine: object
    embedder: Embedder
    tokenizer: object  # as the folder has it: exported, never used (using it changes it)
    reader: object  # its copy for evaluation
    spec: ModelSpec
    untrained: dict
    plan: BatchPlan
    total_steps: int
    data: TrainData
    eval_sets: dict[str, RetrievalSet]  # by source; "" is the whole run's
    objectives: dict[str, Objective]  # by source; one object for all sources without a loss of their own
    temperatures: dict[str, LearnedTemperature]  # by source, where learned
    micro_batch_tokens: int
    log: RunLog
    run_dir: Path
    state: TrainState
    watch: Watch
    seconds: Seconds
    writer: Writer | None = None
    over: bool = False  # stopped early, on every rank


def train(
    config: RunConfig,
    run_file: str,
    resume: bool = False,
    engine: str | None = None,
    processes: int | None = None,
    loss_fn: Callable | None = None,
) -> Path:
    """Trains as the run file says and returns the folder of the final model. Collective: one call per rank.

    engine, processes: the planned world; the run refuses another one. loss_fn(query_embeds, positive_embeds, batch):
    in place of the run file's loss, see objective.LossBatch. Raises BadInput and Failed.
    """
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime):
        final = Path(config.output_dir) / "final"
        check_agreement(runtime.world, facts_of(config))
        warnings = runtime.world.on_first(lambda: check(config, resume, loss_fn, runtime.engine))
        if resume and runtime.world.on_first(lambda: damage(final) is None):
            if runtime.is_main:
                say(f"{config.output_dir}: this run is finished; the model is in {final}")
            return final
        for line in warnings if runtime.is_main else ():
            say(line)
        job = prepare(runtime, config, resume, loss_fn)
        try:
            with listening() as request:
                fit(job, request)
            return finish(job)
        finally:
            job.writer.close()
            job.log.close()


def check(config: RunConfig, resume: bool, loss_fn: Callable | None, engine: str) -> list[str]:
    """Raises BadInput for what would fail later, among it users' losses that cannot be imported; returns warnings."""
    warnings = check_run(config, resume, loss_fn is not None, engine)
    if loss_fn is None:
        import_functions(config.losses.values())
    return warnings


def prepare(runtime: Runtime, config: RunConfig, resume: bool, loss_fn: Callable | None = None) -> Job:
    """Loads model and data, writes run.json, restores the newest whole checkpoint where there is one."""
    run_dir = Path(config.output_dir)
    folder, passed = runtime.world.on_first(lambda: newest(run_dir) if resume else (None, []))
    state = read_state(folder) if folder else TrainState(0, 0, 0, 0, {})
    plan = make_plan(config)
    steps = total_steps(plan, config.train.epochs, config.train.max_steps)
    embedder, tokenizer, spec, untrained = load_embedder(
        config.model, folder, runtime.device, runtime.dtype, config.train.seed
    )
    if embedder.adapter:
        starts = [Path(place) for place in (config.model.lora.start, folder) if place]
        embedder.adapter.base_sha256 = runtime.world.on_first(lambda: hash_base(spec.base, starts))
    if config.train.gradient_checkpointing:
        embedder.recompute()
    trained = count_parameters(embedder)
    objectives = make_objectives(config, plan, spec.normalize, loss_fn)
    engine = runtime.build(embedder, config.optim)
    if folder:
        if state.updates:
            engine.load_moments(checkpoint.read_moments(folder), state.updates)
        engine.scale.load(state.loss_scale)
    temperatures = make_temperatures(objectives, state.temperatures)
    topology = {"processes": runtime.world.size, "engine": runtime.engine, "device": runtime.device.type}
    asked = config.train.micro_batch_tokens
    before = runtime.world.on_first(lambda: chosen_budget(run_dir, topology) if resume and asked == "auto" else None)
    budget = before or resolve_budget(asked, engine, spec)
    about_plan = {
        "version": PLAN_VERSION,
        "rows": plan.rows,
        "steps_per_epoch": plan.epoch_steps,
        "total_steps": steps,
        "micro_batch_tokens": budget,
        "collectives_per_step": {
            name: planned_collectives(runtime.world.size, o, engine.buckets) for name, o in objectives.items()
        },
    }
    runtime.world.on_first(lambda: _prepare_folder(run_dir, config, topology, plan, about_plan))
    log = RunLog(run_dir, runtime.is_main, state.log_offset)
    eval_sets = {name: load_set(where) for name, where in eval_paths(config).items()}
    job = Job(
        config, runtime, engine, embedder, tokenizer, copy.deepcopy(tokenizer), spec, untrained, plan, steps,
        TrainData(config.data, spec, tokenizer, plan), eval_sets, objectives, temperatures, budget, log, run_dir, state,
        Watch(config.watch, dict(state.watch)), Seconds(),
    )  # fmt: skip
    job.over = job.watch.over
    job.writer = Writer(engine, run_dir, config.checkpoint, model_writer(job))
    say_start(job, resume, folder, passed, topology, trained)
    return job


def hash_base(base: str, adapters_of_it: list[Path]) -> str:
    """Of the base's weights. Raises BadInput where one of the adapters was trained on others."""
    found = weights_sha256(Path(base))
    for folder in adapters_of_it:
        check_base(folder, base, found)
    return found


def make_objectives(config: RunConfig, plan: BatchPlan, normalised: bool, loss_fn: Callable | None) -> dict:
    """The loss of every source; sources without one of their own share the run's. Raises BadInput."""
    shared = Objective(config.loss, normalised, loss_fn)
    made = {}
    for name, _ in plan.sources:
        own = config.sources.get(name)
        made[name] = Objective(own.loss, normalised) if own and own.loss and not loss_fn else shared
    return made


def make_temperatures(objectives: dict[str, Objective], states: dict[str, dict]) -> dict[str, LearnedTemperature]:
    """The learned temperature of every source whose loss has one; sources that share a loss share it."""
    made: dict[str, LearnedTemperature] = {}
    for name, objective in objectives.items():
        if objective.config.temperature_lr is None:
            continue
        first = next(other for other, shared in objectives.items() if shared is objective)
        made[name] = made.get(first) or LearnedTemperature(
            objective.config.temperature, objective.config.temperature_lr, states.get(name)
        )
    return made


def _prepare_folder(run_dir: Path, config: RunConfig, topology: dict, plan: BatchPlan, about_plan: dict) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(run_dir)
    remove_marker(run_dir)
    if not (run_dir / "run.json").exists():  # a resumed run keeps the record of how it began
        write_json(run_dir / "run.json", describe_run(config, topology, plan.fingerprint, about_plan))


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
        wishes = request.signal_number, int(clock.due(step + 1))
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
        stop, save = stats.wishes
        if stop:
            raise stop_here(job, stop)
        if epoch_is_over(job):
            end_epoch(job)
            if job.over:
                return
        elif save:
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
