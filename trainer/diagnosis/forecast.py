"""The load of a run's first batches: rows, documents and tokens of each rank's share."""

from dataclasses import dataclass

import numpy as np

from trainer.model.tokenizer import load_tokenizer
from trainer.planner.plan import rank_slice
from trainer.preflight.inputs import Inputs
from trainer.train.data import TrainData


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
        batch = data.batch(step, 0, 1)
        row = np.concatenate([np.tile(np.arange(batch.rows), 2), batch.negative_row.numpy()])  # of every text
        lengths = np.array([len(ids) for ids in batch.tokens])
        documents = 1 + np.bincount(batch.negative_row.numpy(), minlength=batch.rows)
        tokens = np.bincount(row, weights=lengths, minlength=batch.rows).astype(np.int64)
        batches.append(SampledBatch(batch.source, tokens, documents, data.sizes(np.array(batch.row_ids))))
    return batches
