"""The load of a run's first batches: rows, documents and tokens of each rank's share."""

from dataclasses import dataclass

import numpy as np

from trainer.config.sections import RunConfig
from trainer.loss.objective import Objective
from trainer.model.tokenizer import load_tokenizer
from trainer.planner.plan import rank_slice
from trainer.preflight.inputs import Inputs
from trainer.train.data import TrainData
from trainer.train.step import USAGE, planned_collectives


@dataclass(frozen=True)
class SampledBatch:
    """The load of one global batch."""

    source: str
    tokens: np.ndarray  # (rows,) int64, tokens of each row's texts
    documents: np.ndarray  # (rows,) int64, documents of each row
    sizes: np.ndarray  # (rows,) what planner.rank_slice distributes rows by

    def shares(self, ranks: int) -> list[tuple[int, int, int]]:
        """Returns (rows, documents, tokens) of every rank."""
        every = np.arange(len(self.tokens))
        parts = [rank_slice(every, rank, ranks, self.sizes) for rank in range(ranks)]
        return [(len(rows), int(self.documents[rows].sum()), int(self.tokens[rows].sum())) for rows in parts]


def sample(inputs: Inputs, steps: int) -> list[SampledBatch]:
    """Returns the batches of the first `steps` steps, tokenised as the run will."""
    config, spec, plan = inputs.config, inputs.spec, inputs.plan
    data = TrainData(config.data, spec, load_tokenizer(config.model, spec.path), plan, inputs.shards)
    batches = []
    for step in range(steps):
        source, ids = plan.batch(step)
        batch = data.batch(step, 0, 1)
        row = np.concatenate([np.tile(np.arange(batch.rows), 2), batch.negative_row.numpy()])  # of every text
        lengths = np.array([len(ids) for ids in batch.tokens])
        documents = 1 + np.bincount(batch.negative_row.numpy(), minlength=batch.rows)
        tokens = np.bincount(row, weights=lengths, minlength=batch.rows).astype(np.int64)
        batches.append(SampledBatch(source, tokens, documents, data.sizes(ids)))
    return batches


@dataclass(frozen=True)
class Exchange:
    """The traffic of a source's loss; see Objective."""

    gathers: bool
    gathers_queries: bool
    gathers_all: bool
    logged: int  # numbers that a step sums over ranks for the log
    calls: int  # collectives of a step, by the trainer's own count


def exchange(config: RunConfig, source: str, normalised: bool, ranks: int, buckets: int) -> Exchange:
    """Returns the traffic of one source. buckets: of the engine's gradients; 0 with DeepSpeed."""
    objective = Objective(config.loss_of(source), normalised)
    flags = objective.gathers, objective.gathers_queries, objective.gathers_all
    return Exchange(*flags, len(objective.stat_names) + len(USAGE), planned_collectives(ranks, objective, buckets))
