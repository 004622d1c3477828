"""Writes a run's state: at the ends of epochs, on a clock, on a signal, and when the run has diverged."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from data_prep.common.errors import Failed
from data_prep.common.files import write_json
from trainer.config.sections import RunConfig
from trainer.distributed.stop import Stopped, write_marker
from trainer.engine.protocol import Engine
from trainer.engine.weight_average import averaged
from trainer.inference.probe import take_probe
from trainer.loss.temperature import LearnedTemperature
from trainer.model.save import save_embedder
from trainer.model_folder.files import zero_tensors
from trainer.run_dir.checkpoint_writer import Prepare, WriteModel, Writer
from trainer.run_dir.layout import TrainState
from trainer.run_dir.log import RunLog
from trainer.train.job import LoadedModel, Progress


@dataclass
class Checkpoints:
    """The checkpoints of a run. Every method is collective."""

    writer: Writer
    engine: Engine
    temperatures: dict[str, LearnedTemperature]  # by source
    log: RunLog
    progress: Progress

    def snapshot(self) -> TrainState:
        """The state after the last step, completed by what only its parts know."""
        return replace(
            self.progress.state,
            log_offset=self.log.offset(),
            loss_scale=self.engine.scale.state(),
            temperatures={name: temperature.state() for name, temperature in self.temperatures.items()},
            watch=dict(self.progress.watch.state),
        )

    def save_step(self, state: TrainState, background: bool = False) -> Path:
        with self.progress.seconds.of("checkpoints"):
            folder = self.writer.save(f"checkpoint-step-{state.step}", state, background)
        self.log.say(f"step {state.step}: checkpoint in {folder}")
        return folder

    def save_epoch(self, epoch: int, as_best: bool) -> None:
        """Writes the checkpoint of an epoch, and before it best/ if this epoch is the best one."""
        with self.progress.seconds.of("checkpoints"):
            if as_best:
                self.save_model("best")
            self.progress.state = replace(self.snapshot(), epoch=epoch)
            folder = self.writer.save(f"checkpoint-epoch-{epoch}", self.progress.state)
        self.log.say(f"epoch {epoch}: checkpoint in {folder}")

    def save_model(self, name: str) -> Path:
        """Writes a model folder of the averaged weights, without state for resume."""
        with averaged(self.engine):
            return self.writer.save(name, None)

    def stop(self, signal_number: int) -> Stopped:
        """Writes a checkpoint and the marker that asks for a restart; returns the error to raise."""
        step = self.progress.state.step
        stopped = Stopped(signal_number, step, self.save_step(self.snapshot()))
        self.engine.world.on_first(lambda: write_marker(self.writer.run_dir, stopped, step))
        return stopped


def epoch_is_over(state: TrainState, epoch_steps: int, total_steps: int) -> bool:
    """Tells if all steps of an epoch are done whose end has not been evaluated and written yet."""
    ended = state.step % epoch_steps == 0 or state.step == total_steps
    return (state.step - 1) // epoch_steps + 1 > state.epoch and ended


class Skips:
    """Counts steps in a row whose gradient was not finite: more than a few mean that the run has diverged."""

    def __init__(self, checkpoints: Checkpoints, most: int):
        self.checkpoints, self.most = checkpoints, most  # train.max_skipped_steps
        self.in_a_row, self.last_good = 0, checkpoints.snapshot()

    def count(self, skipped: bool) -> None:
        """Raises Failed after `most` steps in a row, with the last good state written. Collective."""
        if not skipped:
            self.in_a_row, self.last_good = 0, self.checkpoints.snapshot()
            return
        self.in_a_row += 1
        if self.in_a_row < self.most:
            return
        folder = self.checkpoints.save_step(self.last_good)  # no weight has changed since
        self.checkpoints.writer.go_back(self.last_good)
        error = Failed(
            f"step {self.checkpoints.progress.state.step}: {self.in_a_row} steps in a row had a gradient that is not "
            f"finite; logs.jsonl holds the row ids of each, {folder} the last good state"
        )
        error.on_every_rank = True
        raise error


def model_writer(model: LoadedModel, config: RunConfig, log: RunLog, progress: Progress) -> Prepare:
    """Returns the `prepare` of a Writer; on all ranks it takes the embeddings that the model folder will record."""

    def prepare(state: TrainState | None) -> WriteModel:
        if state is not None:
            log.sync()  # the state says how much of the log belongs to it
        step = (state or progress.state).step  # of a diverged run the last good state is written, which is older
        probe = take_probe(model.engine, model.reader, model.spec)

        def write(folder: Path, weights: dict[str, Tensor]) -> None:
            save_embedder(folder, weights | model.untrained, model.engine.embedder, model.tokenizer, model.spec)
            write_json(folder / "training_config.json", config.model_dump(mode="json"))
            replace(probe, zeros=zero_tensors(folder), step=step).write(folder)

        return write

    return prepare
