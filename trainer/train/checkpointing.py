"""When a run's state goes to disk between epochs: on a clock, on a signal, and when it has diverged."""

from dataclasses import replace
from pathlib import Path

from data_prep.common.errors import Failed
from data_prep.common.files import write_json
from trainer.distributed.stop import Stopped, write_marker
from trainer.inference.probe import take_probe
from trainer.model.save import save_embedder
from trainer.model_folder.files import zero_tensors
from trainer.run_dir.layout import TrainState


def snapshot(job) -> TrainState:
    """The run's state after the step that has just been made, with what only its parts know. job: train.Job."""
    learned = {name: temperature.state() for name, temperature in job.temperatures.items()}
    return replace(
        job.state,
        log_offset=job.log.offset(),
        loss_scale=job.engine.scale.state(),
        temperatures=learned,
        watch=dict(job.watch.state),
    )


def epoch_is_over(job) -> bool:
    """Whether the steps of an epoch have been made that has not been evaluated and written yet."""
    step, size = job.state.step, job.plan.epoch_steps
    return (step - 1) // size + 1 > job.state.epoch and (step % size == 0 or step == job.total_steps)


def save_step(job, state: TrainState, background: bool = False) -> Path:
    """A checkpoint between epochs. Collective."""
    folder = job.writer.save(f"checkpoint-step-{state.step}", state, background)
    job.log.say(f"step {state.step}: checkpoint in {folder}")
    return folder


def stop_here(job, signal_number: int) -> Stopped:
    """Writes a checkpoint and the marker that asks for the run to be started again; the error to raise. Collective."""
    stopped = Stopped(signal_number, job.state.step, save_step(job, snapshot(job)))
    job.runtime.world.on_first(lambda: write_marker(job.run_dir, stopped, job.state.step))
    return stopped


class Skips:
    """Steps in a row whose gradient was not finite: more than a few mean that the run has diverged."""

    def __init__(self, job):
        self.job, self.in_a_row, self.good = job, 0, snapshot(job)

    def count(self, skipped: bool) -> None:
        """Raises Failed, with the last good state written, after train.max_skipped_steps in a row. Collective."""
        if not skipped:
            self.in_a_row, self.good = 0, snapshot(self.job)
            return
        self.in_a_row += 1
        if self.in_a_row < self.job.config.train.max_skipped_steps:
            return
        folder = save_step(self.job, self.good)  # no weight has changed since
        self.job.writer.go_back(self.good)
        error = Failed(
            f"step {self.job.state.step}: {self.in_a_row} steps in a row had a gradient that is not finite; logs.jsonl "
            f"holds the row ids of each, {folder} the last good state"
        )
        error.on_every_rank = True
        raise error


def model_writer(job):
    """The `prepare` of a checkpoint.Writer: takes the embeddings that the folder will record (all ranks), and gives the
    function that writes a loadable model folder from fp32 weights (rank 0).
    """

    def prepare(state: TrainState | None):
        if state is not None:
            job.log.sync()  # the state says how much of the log belongs to it
        step = (state or job.state).step  # of a diverged run the last good state is written, which lies behind
        probe = take_probe(job.engine, job.reader, job.spec)

        def write(folder: Path, weights: dict) -> None:
            save_embedder(folder, weights | job.untrained, job.embedder, job.tokenizer, job.spec)
            write_json(folder / "training_config.json", job.config.model_dump(mode="json"))
            replace(probe, zeros=zero_tensors(folder), step=step).write(folder)

        return write

    return prepare
