"""The parts of a running job. The loop and its messages take the whole job, other functions what they use."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.sections import RunConfig
from trainer.engine.protocol import Engine
from trainer.engine.start import Runtime
from trainer.loss.objective import Objective
from trainer.loss.temperature import LearnedTemperature
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan
from trainer.run_dir.layout import TrainState
from trainer.run_dir.log import RunLog
from trainer.run_dir.queries import Halves
from trainer.train.data import TrainData
from trainer.train.early_stopping import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.train.checkpointing import Checkpoints


@dataclass
class LoadedModel:
    """The model in training, and what its folder is exported with."""

    engine: Engine
    spec: ModelSpec
    tokenizer: "PreTrainedTokenizerBase"  # as the folder holds it: exported, never used, because use changes it
    reader: "PreTrainedTokenizerBase"  # its copy, for evaluation
    untrained: dict[str, Tensor]  # weights of a pooler that no pooling uses, by name


class Seconds:
    """Seconds by kind: data (waiting for batches), steps, evaluation, checkpoints, other (the rest)."""

    KINDS = ("data", "steps", "evaluation", "checkpoints")

    def __init__(self):
        self.spent, self.began = dict.fromkeys(self.KINDS, 0.0), time.perf_counter()

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[kind] += time.perf_counter() - began

    def waiting(self, items: Iterator) -> Iterator:
        """Yields the items; the time until each is ready counts as data."""
        while True:
            with self.of("data"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def take(self) -> dict[str, float]:
        """Seconds by kind since the last call; `whole` is their sum."""
        now = time.perf_counter()
        whole = now - self.began
        seconds = self.spent | {"other": whole - sum(self.spent.values()), "whole": whole}
        self.spent, self.began = dict.fromkeys(self.KINDS, 0.0), now
        return {kind: round(value, 3) for kind, value in seconds.items()}


@dataclass
class Progress:
    """The state that changes from step to step."""

    state: TrainState
    watch: Watch
    stopped_early: bool  # the same on every rank
    seconds: Seconds = field(default_factory=Seconds)


@dataclass(kw_only=True)
class Job:
    """Everything a run needs, made once in setup.prepare."""

    config: RunConfig
    runtime: Runtime
    model: LoadedModel
    data: TrainData
    eval_data: TrainData | None  # whose loss is measured (watch.eval_loss)
    plan: BatchPlan
    total_steps: int  # optimizer steps of the whole run
    eval_sets: dict[str, RetrievalSet | ScoredPairs]  # by source; "" is the set of the whole run
    halves: Halves | None  # of the set whose metric is watched; None: it is not measured
    objectives: dict[str, Objective]  # by source; sources without a loss of their own share one
    temperatures: dict[str, LearnedTemperature]  # by source, if learned
    micro_batch_tokens: int  # tokens per rank whose activations fit
    run_dir: Path
    log: RunLog
    progress: Progress
    checkpoints: "Checkpoints"

    @property
    def engine(self) -> Engine:
        return self.model.engine

    def release(self) -> None:
        """Gives back the memory of the model in training and of its guides, where no step follows. Collective."""
        for guide in {id(guide): guide for o in self.objectives.values() if (guide := o.guide)}.values():
            guide.engine.release()
        self.engine.release()

    def close(self) -> None:
        self.checkpoints.writer.close()  # finishes what is being written
        self.log.close()
