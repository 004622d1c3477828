"""Writes a run's state: at the ends of epochs, on a clock, on a signal, and when the run has diverged."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data_prep.common.errors import Failed
from data_prep.common.files import write_json
from trainer.config.sections import OptimConfig, RunConfig
from trainer.distributed.collectives import World
from trainer.distributed.stop import Stopped, write_marker
from trainer.engine.protocol import Engine
from trainer.engine.torch_engine import TorchEngine
from trainer.engine.weight_average import averaged
from trainer.inference.probe import Probe, take_probe
from trainer.loss.temperature import LearnedTemperature
from trainer.model.build import load_embedder
from trainer.model.save import save_embedder
from trainer.model_folder.files import TRAINING_CONFIG, zero_tensors
from trainer.run_dir.checkpoint_writer import Prepare, WriteModel, Writer, copy_of, remove_best
from trainer.run_dir.layout import TrainState, kept_model
from trainer.run_dir.log import RunLog
from trainer.run_dir.verdict import BASE, TRAINED, VERDICT
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
        """Writes the checkpoint of an epoch, and before it the best model so far if this epoch made it: unless the
        checkpoint holds the same weights, and stays."""
        if as_best and (self.engine.average or self.writer.config.keep_epochs):
            self.save_best()
        elif as_best:
            self.progress.watch.kept()
        with self.progress.seconds.of("checkpoints"):
            self.progress.state = replace(self.snapshot(), epoch=epoch)
            folder = self.writer.save(f"checkpoint-epoch-{epoch}", self.progress.state)
        self.log.say(f"epoch {epoch}: checkpoint in {folder}")

    def save_best(self) -> None:
        """Writes the averaged weights as the best model so far."""
        with self.progress.seconds.of("checkpoints"), averaged(self.engine):
            self.writer.save_best(self.progress.state.step)
        self.progress.watch.kept()

    def best_model(self) -> tuple[Path | None, str]:
        """Returns the folder of the best model so far, or None, and what is wrong with it; on rank 0."""
        chosen, average = self.progress.watch.chosen, self.engine.average is not None
        return kept_model(self.writer.run_dir, chosen["step"], chosen["epoch"], average)

    def lost_best(self) -> str | None:
        """Returns a line if the best model so far was kept, and is lost; on rank 0."""
        chosen = self.progress.watch.chosen
        if not chosen or not chosen["kept"]:
            return None
        folder, problem = self.best_model()
        lost = f"{self.writer.run_dir / problem}: the best model so far is lost, and the others compete without it"
        return None if folder else lost

    def put_aside(self, step: int, keep_last: bool) -> Path:
        """Returns the folder of the best model, that of `step`. Afterwards the engine alone holds nothing that final/
        or last/ will: the best model is written unless a folder has it, and last/ if that is another model."""
        if keep_last and step != self.progress.state.step:
            self._save_model("last", {})
        epoch, average = self.progress.state.epoch, self.engine.average is not None

        def find() -> Path | None:
            chosen = self.progress.watch.chosen or {}
            return kept_model(self.writer.run_dir, step, chosen.get("epoch", epoch), average)[0]

        folder = self.engine.world.on_first(find)
        if folder is None:  # the last model, whose average no checkpoint holds
            with self.progress.seconds.of("checkpoints"), averaged(self.engine):
                self.writer.save_best(step)
            folder = self.engine.world.on_first(find)
        return folder

    def save_final(self, verdict: dict, base: Callable[[], WriteModel], keep_last: bool) -> Path:
        """Writes final/ as the verdict says (its key `final`), and last/ where that is another model. base: makes the
        writer of the model before training; rank 0 calls it."""
        final, facts = verdict["final"], {VERDICT: verdict}
        is_base, is_last = final["model"] == BASE, final["step"] == self.progress.state.step
        with self.progress.seconds.of("checkpoints"):
            if keep_last and (is_base or not is_last):
                self._save_model("last", {})
            if is_base:
                folder = self.writer.write_on_first("final", base, facts)
            elif is_last:
                folder = self._save_model("final", facts)
            else:
                folder = self.writer.write_on_first("final", lambda: copy_of(self.best_model()[0]), facts)
        self.engine.world.on_first(lambda: remove_best(self.writer.run_dir))
        return folder

    def save_blended(
        self, verdict: dict, facts: dict, best: Path, write: dict[str, Callable[[], WriteModel]], keep_last: bool
    ) -> Path:
        """Writes final/ as the verdict says, and last/ where that is another model, without the engine. facts: more
        JSON files of final/, which the model before training goes without: they are of a share that it is not. best: of
        put_aside. write: makes the writers of the other models that final/ may hold; rank 0 calls one."""
        model, is_last = verdict["final"]["model"], verdict["best"]["step"] == self.progress.state.step
        makers = write | {TRAINED: lambda: copy_of(best)}
        with self.progress.seconds.of("checkpoints"):
            if keep_last and is_last and model != TRAINED:
                self.writer.write_on_first("last", makers[TRAINED], {})
            kept = {} if model == BASE else facts
            folder = self.writer.write_on_first("final", makers[model], kept | {VERDICT: verdict})
        self.engine.world.on_first(lambda: remove_best(self.writer.run_dir))
        return folder

    def _save_model(self, name: str, facts: dict) -> Path:
        """Writes a model folder of the averaged weights, without state for resume."""
        with averaged(self.engine):
            return self.writer.save(name, None, facts=facts)

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
            _complete(folder, config, replace(probe, step=step))

        return write

    return prepare


def base_writer(model: LoadedModel, config: RunConfig, device: torch.device) -> WriteModel:
    """Returns the writer of the model before training, loaded anew in this process: the folder's own weights, with
    adapters as they began. device: of a quantised base; all else stays on the CPU."""
    cpu = torch.device("cpu")
    place = device if model.spec.bits else cpu
    loaded = load_embedder(config.model, None, place, None, config.train.seed, replace(model.spec, notes=[]))
    embedder, tokenizer, spec, untrained = loaded
    if embedder.adapter:
        embedder.adapter.base_sha256 = model.engine.embedder.adapter.base_sha256
    engine = TorchEngine(embedder, OptimConfig(), World(), place, None)
    probe = replace(take_probe(engine, copy.deepcopy(tokenizer), spec), step=0)

    def write(folder: Path, _: dict[str, Tensor]) -> None:
        save_embedder(folder, engine.weights() | untrained, embedder, tokenizer, spec)
        _complete(folder, config, probe)

    return write


def _complete(folder: Path, config: RunConfig, probe: Probe) -> None:
    """Writes what stands beside the weights."""
    write_json(folder / TRAINING_CONFIG, config.model_dump(mode="json"))
    replace(probe, zeros=zero_tensors(folder)).write(folder)
