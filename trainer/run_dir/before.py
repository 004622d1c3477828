"""OUT/before.json: an evaluation of the model before training that another run of the same model and sets has made.

A command that starts several such runs (trainer.curve) writes it before a run begins; that run then logs these values
in place of measuring once more. Never imports torch.
"""

from pathlib import Path

from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_object
from trainer.run_dir.layout import BEFORE
from trainer.run_dir.log import LOG, RunLog, read_events
from trainer.run_dir.queries import read_values, write_values


def measured_by(run_dir: Path) -> dict | None:
    """Returns what a run measured before training; None if it kept no values of single queries."""
    values = read_values(run_dir, 0)
    events = [event for event in read_events(run_dir / LOG) if event["event"] == "evaluation" and event["step"] == 0]
    plain = [{key: value for key, value in event.items() if key not in ("event", "time", "step")} for event in events]
    return {"run": str(run_dir), "evaluations": plain, "values": values} if values and plain else None


def write_before(run_dir: Path, measured: dict) -> None:
    write_json(run_dir / BEFORE, measured)


def read_before(run_dir: Path) -> dict:
    """Returns what another run has measured for this one; empty if there is none."""
    return read_object(run_dir / BEFORE)


def take_over(run_dir: Path, log: RunLog, measured: dict) -> dict[str, float]:
    """Logs another run's evaluation as this run's own; returns its metrics, those of single sets as `set/metric`."""
    metrics = {}
    for event in measured["evaluations"]:
        log.event("evaluation", step=0, **event | {"seconds": 0.0, "taken_from": measured["run"]})
        source = event.get("source", "")
        numbers = {name: value for name, value in event.items() if name not in ("source", "seconds", "taken_from")}
        log.scalars(f"evaluation/{source}" if source else "evaluation", numbers, 0)
        metrics |= {f"{source}/{name}" if source else name: value for name, value in numbers.items()}
    log.say(f"evaluation after step 0: that of {measured['run']}, of the same model")
    write_values(run_dir, 0, measured["values"])
    return metrics
