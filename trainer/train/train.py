"""A training run, top to bottom: start, check, set up, fit, finish."""

from collections.abc import Callable
from pathlib import Path

from data_prep.common.console import say
from trainer.config.sections import RunConfig
from trainer.distributed.device import precision_notes
from trainer.distributed.stop import listening
from trainer.engine.agreement import check_agreement, facts_of
from trainer.engine.start import Runtime, process_group, start
from trainer.loss.user_functions import import_functions
from trainer.preflight.check_run import check_run
from trainer.preflight.inputs import Inputs
from trainer.run_dir.callbacks import import_callbacks
from trainer.run_dir.checkpoint_writer import remove_best, sweep
from trainer.run_dir.finished import is_finished
from trainer.run_dir.lock import holding
from trainer.run_dir.record import Begun, as_begun, recorded
from trainer.train.fit import finish, fit
from trainer.train.setup import prepare


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
    in place of the run file's loss, see user_functions.LossBatch. Raises BadInput and Failed.
    """
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime, config.train.timeout_minutes):
        config = as_begun(config, runtime.world.on_first(lambda: recorded(config.output_dir) if resume else Begun()))
        inputs = Inputs(config)
        check_agreement(runtime.world, facts_of(config, inputs.fingerprint))
        warnings = runtime.world.on_first(lambda: check(inputs, resume, loss_fn, runtime.engine))
        with holding(Path(config.output_dir), runtime.world):
            return _train_alone(runtime, inputs, resume, loss_fn, warnings)


def _train_alone(runtime: Runtime, inputs: Inputs, resume: bool, loss_fn: Callable | None, warnings: list[str]) -> Path:
    """Trains in an output folder that no other process writes. Collective."""
    config = inputs.config
    final = Path(config.output_dir) / "final"
    runtime.world.on_first(lambda: sweep(final.parent))
    if resume and runtime.world.on_first(lambda: is_finished(final.parent)):
        if runtime.is_main:
            remove_best(final.parent)  # it may have been killed before
            say(f"{config.output_dir}: this run is finished; the model is in {final}")
        return final
    warnings += precision_notes(config.train.precision, runtime.device.type)
    for line in warnings if runtime.is_main else ():
        say(line)
    job = prepare(runtime, inputs, resume, loss_fn)
    try:
        with listening() as request:
            fit(job, request)
        return finish(job)
    finally:
        job.close()


def check(inputs: Inputs, resume: bool, loss_fn: Callable | None = None, engine: str | None = None) -> list[str]:
    """Returns warnings. Raises BadInput for what would fail later, including user losses that cannot be imported."""
    warnings = check_run(inputs, resume, loss_fn is not None, engine)
    if loss_fn is None:
        import_functions(inputs.config.losses.values())
    import_callbacks(inputs.config.train.callbacks)
    return warnings
