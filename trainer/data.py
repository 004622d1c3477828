"""Shards and plan -> the batches of one rank, tokenised ahead of the step that needs them."""

import copy
import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.records import Record, query_key, text_key
from data_prep.shards import open_shards
from trainer.config import DataConfig
from trainer.folder import ModelSpec
from trainer.model import tokenize
from trainer.planner import BatchPlan, rank_slice
from trainer.step import Batch

BYTES_PER_TOKEN = 5  # of English text, to see which texts are cut
NO_KEY, PAD_KEY = -1, -2  # of a document, of a row: they never match each other


def seed_of(*parts: int) -> int:
    """A 62-bit seed from integers; the same everywhere."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 2


@dataclass
class TrainData:
    """The train split of a shard folder as this model reads it."""

    data: DataConfig
    spec: ModelSpec
    tokenizer: object
    plan: BatchPlan

    def __post_init__(self):
        self.rows = open_shards(self.data.train).split("train")
        # Its own copy: a fast tokenizer carries the length it cuts at, and evaluation runs while batches are made.
        self.tokenizer = copy.deepcopy(self.tokenizer)

    def batches(self, first_step: int, last_step: int, rank: int, world: int) -> Iterator[tuple[int, Batch]]:
        """(step, this rank's slice) for steps first_step..last_step-1, each made while the one before it trains."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            steps = iter(range(first_step, last_step))
            ahead = [pool.submit(self._make, step, rank, world) for step in itertools.islice(steps, 2)]
            while ahead:
                yield ahead.pop(0).result()
                for step in itertools.islice(steps, 1):
                    ahead.append(pool.submit(self._make, step, rank, world))

    def draw(self, epoch: int, ids: list[int], records: list[Record]) -> list[int]:
        """Which positive of each row takes part in this epoch."""
        return [seed_of(self.plan.seed, epoch, i) % len(r.positives) for i, r in zip(ids, records)]

    def _make(self, step: int, rank: int, world: int) -> tuple[int, Batch]:
        source, whole = self.plan.batch(step)
        ids = rank_slice(whole, rank, world, self.sizes(whole)).tolist()
        records = self.rows.take(ids)
        drawn = self.draw(step // self.plan.steps_per_epoch, ids, records)
        return step, self.make_batch(ids, records, drawn, len(whole), seed_of(self.plan.seed, step, rank), source)

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """About how much there is to embed in each row, in bytes of text: known without reading or tokenising it."""
        queries, positives, negatives = (self.rows.bytes_of(name, ids) for name in ("query", "positives", "negatives"))
        most = BYTES_PER_TOKEN * np.array([self.spec.query_max_len, self.spec.passage_max_len])
        one = np.minimum(positives.total / positives.count, most[1])
        hard = negatives.count if self.data.max_hard_negatives is None else np.minimum(
            negatives.count, self.data.max_hard_negatives
        )  # fmt: skip
        return np.minimum(queries.total, most[0]) + one + hard * np.minimum(
            negatives.total / np.maximum(1, negatives.count), most[1]
        )  # fmt: skip

    def make_batch(
        self, ids: list[int], records: list[Record], drawn: list[int], global_rows: int, seed: int, source: str = ""
    ) -> Batch:
        """drawn: which positive of each record takes part; its other positives are masked, never negatives."""
        own = [r.negatives[: self.data.max_hard_negatives] for r in records]
        negatives = [text for texts in own for text in texts]
        queries, cut_queries = tokenize(
            [r.query for r in records], self.spec.query_prompt, self.spec.query_max_len, self.tokenizer
        )
        documents, cut_documents = tokenize(
            [r.positives[k] for r, k in zip(records, drawn)] + negatives,
            self.spec.passage_prompt,
            self.spec.passage_max_len,
            self.tokenizer,
        )
        row_keys = [[text_key(t) for t in r.positives] + [text_key(f"id:{d}") for d in r.doc_ids] for r in records]
        width = max((len(keys) for keys in row_keys), default=1)
        row_query = [query_key(r) for r in records]
        doc_keys = [
            [text_key(r.positives[k]), text_key(f"id:{r.doc_ids[k]}") if r.doc_ids else NO_KEY, query]
            for r, k, query in zip(records, drawn, row_query)
        ] + [[text_key(text), NO_KEY, NO_KEY] for text in negatives]
        return Batch(
            row_ids=ids,
            tokens=queries + documents,
            row_keys=torch.tensor([k + [PAD_KEY] * (width - len(k)) for k in row_keys]).reshape(len(records), width),
            row_query=torch.tensor(row_query, dtype=torch.int64),
            doc_keys=torch.tensor(doc_keys, dtype=torch.int64).reshape(-1, 3),
            negative_row=torch.tensor([row for row, texts in enumerate(own) for _ in texts], dtype=torch.int64),
            scores=_numbers([r.score for r in records]),
            teacher_positive=_numbers([r.teacher_scores and r.teacher_scores[k] for r, k in zip(records, drawn)]),
            teacher_negative=_numbers([score for r, texts in zip(records, own) for score in _teacher(r, len(texts))]),
            global_rows=global_rows,
            truncated=cut_queries + cut_documents,
            seed=seed,
            source=source,
        )


def _numbers(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


def _teacher(record: Record, negatives: int) -> list[float | None]:
    """The teacher's scores of a record's first hard negatives (they follow those of its positives)."""
    if record.teacher_scores is None:
        return [None] * negatives
    return record.teacher_scores[len(record.positives) :][:negatives]
