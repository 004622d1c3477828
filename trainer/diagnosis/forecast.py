"""What the first batches of a run ask of its ranks: rows, documents and tokens of each rank's share."""

from dataclasses import dataclass

import numpy as np

from trainer.config.sections import RunConfig
from trainer.loss.objective import Objective
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan, rank_slice
from trainer.train.data import TrainData
from trainer.train.step import USAGE, planned_collectives


@dataclass(frozen=True)
class SampledBatch:
    """A global batch. tokens, documents: (rows,) of each row; sizes: as planner.rank_slice deals rows out by."""

    source: str
    tokens: np.ndarray
    documents: np.ndarray
    sizes: np.ndarray

    def shares(self, ranks: int) -> list[tuple[int, int, int]]:
        """(rows, documents, tokens) of every rank."""
        every = np.arange(len(self.tokens))
        parts = [rank_slice(every, rank, ranks, self.sizes) for rank in range(ranks)]
        return [(len(rows), int(self.documents[rows].sum()), int(self.tokens[rows].sum())) for rows in parts]


def sample(config: RunConfig, spec: ModelSpec, plan: BatchPlan, steps: int) -> list[SampledBatch]:
    """The batches of the first `steps` steps, tokenised as the run will."""
    data = TrainData(config.data, spec, load_tokenizer(config.model, spec.path), plan)
    found = []
    for step in range(steps):
        source, ids = plan.batch(step)
        batch = data.batch(step, 0, 1)
        row = np.concatenate([np.tile(np.arange(batch.rows), 2), batch.negative_row.numpy()])  # of every text
        lengths = np.array([len(ids) for ids in batch.tokens])
        documents = 1 + np.bincount(batch.negative_row.numpy(), minlength=batch.rows)
        tokens = np.bincount(row, weights=lengths, minlength=batch.rows).astype(np.int64)
        found.append(SampledBatch(source, tokens, documents, data.sizes(ids)))
    return found


@dataclass(frozen=True)
class Exchange:
    """What a source's loss sends; see Objective. calls: collectives of a step, by the trainer's own count."""

    gathers: bool
    gathers_queries: bool
    gathers_all: bool
    logged: int
    calls: int


def exchange(config: RunConfig, source: str, normalised: bool, ranks: int, buckets: int) -> Exchange:
    """buckets: in which the engine's gradients travel; 0 with DeepSpeed."""
    objective = Objective(config.loss_of(source), normalised)
    flags = objective.gathers, objective.gathers_queries, objective.gathers_all
    return Exchange(*flags, len(objective.stat_names) + len(USAGE), planned_collectives(ranks, objective, buckets))
