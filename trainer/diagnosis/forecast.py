"""The load of a run's first batches: rows, documents and tokens of each rank's share."""

import math
from dataclasses import dataclass

import numpy as np

from trainer.model.tokenizer import load_tokenizer
from trainer.planner.plan import rank_slice
from trainer.preflight.inputs import Inputs
from trainer.train.data import TrainData

MARGIN = 1.25  # tokens of a text by its bytes, against the mean


@dataclass(frozen=True)
class SampledBatch:
    """The load of one global batch."""

    source: str
    tokens: np.ndarray  # (rows,) int64, tokens of each row's texts
    documents: np.ndarray  # (rows,) int64, documents of each row
    squares: np.ndarray  # (rows,) int64, sum of the squared lengths of each row's texts
    sizes: np.ndarray  # (rows,) what planner.rank_slice distributes rows by
    longest: int  # tokens of its longest text

    def shares(self, ranks: int) -> list[tuple[int, int, int, int]]:
        """Returns (rows, documents, tokens, squares) of every rank."""
        every = np.arange(len(self.tokens))
        parts = [rank_slice(every, rank, ranks, self.sizes) for rank in range(ranks)]
        sums = (self.documents, self.tokens, self.squares)
        return [(len(rows), *(int(values[rows].sum()) for values in sums)) for rows in parts]


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
        tokens, squares = (np.bincount(row, lengths**n, minlength=batch.rows).astype(np.int64) for n in (1, 2))
        sizes = data.sizes(np.array(batch.row_ids))
        batches.append(SampledBatch(batch.source, tokens, documents, squares, sizes, int(lengths.max())))
    return batches


def longest_text(inputs: Inputs, batches: list[SampledBatch]) -> int:
    """Estimates the tokens of the longest text of all rows, from its bytes: one chunk must hold it. Reads no text."""
    rows, rules = inputs.shards.split("train"), inputs.spec.rules
    sampled = sum(int(batch.tokens.sum()) for batch in batches)
    per_token = max(1.0, sum(float(batch.sizes.sum()) for batch in batches) / sampled)
    every = np.arange(len(rows))
    columns = (rows.bytes_of(name, every) for name in ("query", "positives", "negatives"))
    largest = max(float((texts.total / np.maximum(1, texts.count)).max()) for texts in columns)
    least = max(batch.longest for batch in batches)
    return min(rules.max_len, max(least, math.ceil(MARGIN * largest / per_token)))
