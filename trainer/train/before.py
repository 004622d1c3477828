"""The evaluation before training where another run of the same model has made it, see run_dir/before.py."""

from trainer.config.sections import TRAIN_LOSS
from trainer.run_dir.before import read_before
from trainer.run_dir.queries import mean_of, watched, write_values
from trainer.train.early_stopping import Measured
from trainer.train.job import Job


def taken_over(job: Job) -> Measured | None:
    """Logs and returns the other run's evaluation; None where there is none. Off rank 0 it is empty. Collective."""
    measured = job.runtime.world.on_first(lambda: read_before(job.run_dir))
    if not measured:
        return None
    if not job.runtime.is_main:
        return Measured(None, None)
    log, metrics = job.log, {}
    for event in measured["evaluations"]:
        log.event("evaluation", step=0, **event | {"seconds": 0.0, "taken_from": measured["run"]})
        source = event.get("source", "")
        numbers = {name: value for name, value in event.items() if name not in ("source", "seconds", "taken_from")}
        log.scalars(f"evaluation/{source}" if source else "evaluation", numbers, 0)
        metrics |= {f"{source}/{name}" if source else name: value for name, value in numbers.items()}
    log.say(f"evaluation after step 0: that of {measured['run']}, of the same model")
    write_values(job.run_dir, 0, measured["values"])
    values = measured["values"].get(watched(job.config.watch.metric)[0])
    deciding = None
    if values and job.halves and job.config.watch.metric != TRAIN_LOSS:
        deciding = mean_of(values, [query for query in job.halves.choosing if query in values])
    return Measured(metrics or None, deciding)
