"""Definitions of this subject."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import write_json
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from trainer.config.sections import RunConfig
from trainer.distributed.stop import remove_marker
from trainer.engine.protocol import Engine
from trainer.engine.start import Runtime
from trainer.loss.objective import Objective
from trainer.loss.temperature import LearnedTemperature
from trainer.model.adapters import check_base
from trainer.model.build import count_parameters, load_embedder
from trainer.model.embedder import Embedder
from trainer.model_folder.files import weights_sha256
from trainer.model_folder.spec import ModelSpec
from trainer.planner.from_config import make_plan
from trainer.planner.plan import PLAN_VERSION, BatchPlan, total_steps
from trainer.preflight.evaluation import eval_paths
from trainer.run_dir import checkpoint_writer as checkpoint
from trainer.run_dir.checkpoint_writer import Writer
from trainer.run_dir.layout import TrainState, newest, read_state
from trainer.run_dir.log import RunLog
from trainer.run_dir.record import chosen_budget, describe_run
from trainer.train.checkpointing import model_writer
from trainer.train.data import TrainData
from trainer.train.early_stopping import Watch
from trainer.train.messages import Seconds, say_start
from trainer.train.step import planned_collectives
from trainer.train.token_budget import resolve_budget


@dataclass
class Job:
    """Everything a run needs, made once in prepare()."""

    config: RunConfig
    runtime: Runtime
    engine: Engine
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
