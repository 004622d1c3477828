"""Sets a run up: loads model and data, writes run.json, restores the newest checkpoint."""

import copy
from collections.abc import Callable
from pathlib import Path

from data_prep.common.files import check, write_json
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.config.sections import TRAIN_LOSS, LossConfig, RunConfig
from trainer.distributed.stop import remove_marker
from trainer.engine.start import Runtime
from trainer.evaluation.metric_names import PAIR_METRICS
from trainer.inference.guide import Guide
from trainer.inference.reading import as_guide
from trainer.inference.text_encoder import TextEncoder
from trainer.loss.objective import Objective
from trainer.loss.temperature import LearnedTemperature
from trainer.model.adapters import check_base
from trainer.model.base_dtype import resolve
from trainer.model.build import count_parameters, load_embedder
from trainer.model.loading import Sources
from trainer.model_folder.files import weights_sha256
from trainer.planner.plan import PLAN_VERSION, BatchPlan, total_steps
from trainer.preflight.inputs import Inputs
from trainer.run_dir.checkpoint_writer import Writer, read_moments
from trainer.run_dir.layout import TrainState, read_state, to_resume
from trainer.run_dir.log import RunLog
from trainer.run_dir.outcome import sample_of
from trainer.run_dir.queries import Halves, halves_of, watched, write_halves
from trainer.run_dir.record import chosen_budget, describe_run, recorded_base_dtype, recorded_guides
from trainer.train.checkpointing import Checkpoints, model_writer
from trainer.train.data import TrainData
from trainer.train.early_stopping import Watch
from trainer.train.job import Job, LoadedModel, Progress
from trainer.train.messages import Start, say_start
from trainer.train.step import planned_collectives
from trainer.train.token_budget import resolve_budget


def prepare(runtime: Runtime, inputs: Inputs, resume: bool, loss_fn: Callable | None = None) -> Job:
    """Loads model and data, writes run.json, restores the newest whole checkpoint if there is one. Raises BadInput.
    Collective."""
    config, plan, world = inputs.config, inputs.plan, runtime.world
    run_dir = Path(config.output_dir)
    folder, passed_over = world.on_first(lambda: to_resume(run_dir) if resume else (None, []))
    state = read_state(folder) if folder else TrainState(0, 0, 0, 0, {})
    steps = total_steps(plan, config.train.epochs, config.train.max_steps)
    base = world.on_first(lambda: recorded_base_dtype(run_dir) if resume else None)
    base = base or resolve(config.model.base_dtype, runtime.device, runtime.dtype, inputs.spec.fp32_base)
    model, (trained, parameters), weights = _load_model(runtime, inputs, folder, state, base)
    guides = {} if loss_fn else make_guides(runtime, config)
    identities = world.on_first(lambda: identify_guides(run_dir, config, [*guides], resume))
    objectives = make_objectives(config, plan, model.spec.normalize, loss_fn, guides)
    temperatures = make_temperatures(objectives, state.temperatures)
    topology = {"processes": world.size, "engine": runtime.engine, "device": runtime.device.type}
    asked = config.train.micro_batch_tokens
    recorded = world.on_first(lambda: chosen_budget(run_dir, topology) if resume and asked == "auto" else None)
    budget = recorded or resolve_budget(asked, model.engine, model.spec)
    buckets = model.engine.buckets
    collectives = {name: planned_collectives(world.size, o, buckets) for name, o in objectives.items()}
    plan_facts = {
        "version": PLAN_VERSION,
        "rows": plan.rows,
        "steps_per_epoch": plan.epoch_steps,
        "total_steps": steps,
        "micro_batch_tokens": budget,
        "collectives_per_step": collectives,
        **({"guides": identities} if guides else {}),
    }
    halves = halves_of_run(inputs)
    world.on_first(lambda: _prepare_folder(run_dir, config, topology, plan, plan_facts, base, halves))
    log = RunLog(run_dir, runtime.is_main, state.log_offset, config.train.callbacks)
    watch = Watch(config.watch, dict(state.watch))
    progress = Progress(state, watch, stopped_early=watch.over)
    writer = Writer(model.engine, run_dir, config.checkpoint, model_writer(model, config, log, progress), log.written)
    guide_tokens = {name: o.guide.tokens for name, o in objectives.items() if o.guide}
    read = inputs.shards, guide_tokens
    data = TrainData(config.data, model.spec, model.tokenizer, plan, *read)
    own_plan = inputs.eval_plan
    eval_data = TrainData(config.data, model.spec, model.tokenizer, own_plan, *read, "eval") if own_plan else None
    writer.best = watch.chosen and watch.chosen["step"]
    checkpoints = Checkpoints(writer, model.engine, temperatures, log, progress)
    job = Job(
        config=config, runtime=runtime, model=model, data=data, eval_data=eval_data, plan=plan, total_steps=steps,
        eval_sets=inputs.eval_sets, halves=halves, objectives=objectives, temperatures=temperatures,
        micro_batch_tokens=budget, run_dir=run_dir, log=log, progress=progress, checkpoints=checkpoints,
    )  # fmt: skip
    if line := world.on_first(checkpoints.lost_best):
        watch.state.pop("chosen", None)
        log.say(line)
    facts = resume, folder, passed_over, topology, trained, parameters, loss_fn is not None, weights, [*guides.values()]
    say_start(job, Start(*facts))
    return job


def _load_model(
    runtime: Runtime, inputs: Inputs, folder: Path | None, state: TrainState, base: str
) -> tuple[LoadedModel, tuple[int, int], str | None]:
    """Returns the model in its engine, as the checkpoint `folder` has it, (trained, all) parameters, and without a
    checkpoint outcome.sample_of the trained weights. Collective. base: how frozen weights are stored, fp32 or bf16."""
    config = inputs.config
    placing = runtime.device, runtime.dtype, config.train.seed
    sources = Sources(reads=runtime.is_main)  # the engine fills the model
    embedder, tokenizer, spec, untrained = load_embedder(config.model, folder, *placing, inputs.spec, base, sources)
    if embedder.adapter:
        starts = [Path(path) for path in (config.model.lora.start, folder) if path]
        embedder.adapter.base_sha256 = runtime.world.on_first(lambda: hash_base(spec.base, starts))
    if config.train.gradient_checkpointing:
        embedder.recompute()
    counts = count_parameters(embedder)
    trained, reads = embedder.trained(), runtime.is_main and not folder
    sample = sample_of(trained, lambda name: embedder.sources.read(trained[name])) if reads else None
    engine = runtime.build(embedder, config.optim, config.train.gradient_reduction == "chunk")
    if folder:
        if state.updates:
            engine.load_moments(read_moments(folder), state.updates)
        engine.scale.load(state.loss_scale)
    return LoadedModel(engine, spec, tokenizer, copy.deepcopy(tokenizer), untrained), counts, sample


def hash_base(base: str, adapters_of_it: list[Path]) -> str:
    """Returns the hash of the base's weights. Raises BadInput if one of the adapters was trained on others."""
    sha256 = weights_sha256(Path(base))
    for folder in adapters_of_it:
        check_base(folder, base, sha256)
    return sha256


def make_objectives(
    config: RunConfig, plan: BatchPlan, normalised: bool, loss_fn: Callable | None, guides: dict[str, Guide]
) -> dict[str, Objective]:
    """Returns the loss of every source; sources without one of their own share the run's. guides: by path. Raises
    BadInput."""

    def make(loss: LossConfig, loss_fn: Callable | None = None) -> Objective:
        guide = guides.get(loss.guide.model) if loss.guide else None
        return Objective(loss, normalised, loss_fn, guide)

    shared = make(config.loss, loss_fn)
    objectives = {}
    for name, _ in plan.sources:
        own = config.sources.get(name)
        objectives[name] = make(own.loss) if own and own.loss and not loss_fn else shared
    return objectives


def make_guides(runtime: Runtime, config: RunConfig) -> dict[str, Guide]:
    """Returns the guides of the losses by path, one for all that name the same. Raises BadInput. Collective."""
    paths = dict.fromkeys(loss.guide.model for loss in config.losses.values() if loss.guide)
    return {path: Guide(path, config.model, runtime) for path in paths}


def identify_guides(run_dir: Path, config: RunConfig, paths: list[str], resume: bool) -> dict[str, str]:
    """Returns the sha256 of each guide. Raises BadInput if a resumed run began with another one."""
    found = {path: TextEncoder(as_guide(path, config.model)).fingerprint for path in paths}
    began = recorded_guides(run_dir) if resume else {}
    changed = [path for path, sha256 in found.items() if began.get(path, sha256) != sha256]
    other = "is no longer the model that the run began with; put that one back, or train into another output_dir"
    check([f"loss.guide.model: {path} {other}" for path in changed])
    return found


def make_temperatures(objectives: dict[str, Objective], states: dict[str, dict]) -> dict[str, LearnedTemperature]:
    """Returns the learned temperatures by source, resumed from `states`; sources that share a loss share it."""
    temperatures: dict[str, LearnedTemperature] = {}
    for name, objective in objectives.items():
        if objective.config.temperature_lr is None:
            continue
        first = next(other for other, shared in objectives.items() if shared is objective)
        start = objective.config.temperature, objective.config.temperature_lr, states.get(name)
        temperatures[name] = temperatures.get(first) or LearnedTemperature(*start)
    return temperatures


def halves_of_run(inputs: Inputs) -> Halves | None:
    """Returns the queries that choose the best model and those that report; None if no ranking of a set is watched."""
    source, metric = watched(inputs.config.watch.metric)
    data = inputs.eval_sets.get(source)
    ranked = isinstance(data, RetrievalSet) and metric not in PAIR_METRICS
    return halves_of(data.query_ids, data.qrels) if ranked else None


def _prepare_folder(
    run_dir: Path, config: RunConfig, topology: dict, plan: BatchPlan, plan_facts: dict, base: str,
    halves: Halves | None,
) -> None:  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    remove_marker(run_dir)
    if halves and config.watch.metric != TRAIN_LOSS:
        write_halves(run_dir, halves)
    if not (run_dir / "run.json").exists():  # a resumed run keeps the record of how it began
        write_json(run_dir / "run.json", describe_run(config, topology, plan.fingerprint, plan_facts, base))
