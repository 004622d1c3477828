"""Batches of one rank from shards and plan, tokenised ahead of the step that needs them."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from data_prep.common.errors import BadInput
from data_prep.records import Record, id_key, query_key, text_key
from data_prep.shards.folder import ShardFolder, open_shards
from trainer.config.sections import DataConfig
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys
from trainer.model.tokenizer import prompt_tokens, tokenize
from trainer.model_folder.spec import ModelSpec
from trainer.planner.plan import BatchPlan, rank_slice

AHEAD = 2  # batches made while earlier steps train
CHECKED_ROWS = 16  # of pre-tokenised shards, at the start of a run
BYTES_PER_TOKEN = 5  # of English text, to estimate which texts are truncated
KNOWN_PROMPTS = 100_000  # whose number of tokens is remembered
NO_KEY, PAD_KEY = -1, -2  # of a document, of a row: they never match each other


def seed_of(*parts: int) -> int:
    """Returns a 62-bit seed from integers, the same on every platform."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 2


@dataclass
class TrainData:
    """Train or eval split of a shard folder as this model reads it."""

    data: DataConfig
    spec: ModelSpec  # with the prompts of sources and rows
    tokenizer: object
    plan: BatchPlan
    shards: ShardFolder | None = None  # None: opened here
    # by source, of a loss with a guide: (queries, documents) -> the guide's token ids
    guides: dict[str, Callable[[list[str], list[str]], list[list[int]]]] = field(default_factory=dict)
    split: str = "train"  # or "eval", whose rows are never tokenised in the shards

    def __post_init__(self):
        shards = self.shards or open_shards(self.data.train)
        self.rows, self.tokens = shards.split(self.split), shards.train_tokens() if self.split == "train" else None
        # A copy: a fast tokenizer keeps the length it truncates to, and evaluation runs while batches are made.
        self.tokenizer = copy.deepcopy(self.tokenizer)
        self._prompt_tokens: dict[str, int] = {}  # by prompt
        if self.tokens:
            self._check_tokens()

    def _check_tokens(self) -> None:
        """Raises BadInput where the shards' tokens differ from this tokenizer's (preflight compares the manifest)."""
        ids = list(range(min(CHECKED_ROWS, len(self.rows))))
        records = self.rows.take(ids)
        texts = ids, records, [0] * len(ids), [list(range(len(record.negatives))) for record in records]
        if self._read_tokens(*texts) != self._make_tokens(*texts):
            raise BadInput(
                f"data.train: the tokens of {self.data.train} are not what the tokenizer of {self.spec.path} makes of "
                "its texts today; shard again"
            )

    def batches(self, first_step: int, last_step: int, rank: int, world: int) -> Iterator[tuple[int, Batch]]:
        """Yields (step, this rank's slice) for steps first_step..last_step-1, made while earlier steps train."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            steps = range(first_step, last_step)
            ahead = deque(pool.submit(self.batch, step, rank, world) for step in steps[:AHEAD])
            for step in steps:
                yield step, ahead.popleft().result()
                if step + AHEAD in steps:
                    ahead.append(pool.submit(self.batch, step + AHEAD, rank, world))

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Returns one rank's slice of one step."""
        source, whole = self.plan.batch(step)
        ids = rank_slice(whole, rank, world, self.sizes(whole)).tolist()
        records = self.rows.take(ids)
        epoch = step // self.plan.steps_per_epoch
        drawn = [seed_of(self.plan.seed, epoch, i) % len(r.positives) for i, r in zip(ids, records)]
        negatives = [self.plan.negatives(step, i, len(r.negatives)) for i, r in zip(ids, records)]
        seed = seed_of(self.plan.seed, step, rank)
        return self.make_batch(ids, records, drawn, len(whole), seed, source, negatives)

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """Estimates the bytes of text to embed in each row, without reading or tokenising it: (rows,) float64."""
        queries, positives, negatives = (self.rows.bytes_of(name, ids) for name in ("query", "positives", "negatives"))
        most = BYTES_PER_TOKEN * np.array([self.spec.rules.query_max_len, self.spec.rules.passage_max_len])
        positive = np.minimum(positives.total / positives.count, most[1])
        negative = np.minimum(negatives.total / np.maximum(1, negatives.count), most[1])
        cut, hard = self.data.max_hard_negatives, negatives.count
        hard = hard if cut is None else np.minimum(hard, cut)
        return np.minimum(queries.total, most[0]) + positive + hard * negative

    def make_batch(
        self,
        ids: list[int],
        records: list[Record],
        drawn: list[int],
        global_rows: int,
        seed: int,
        source: str = "",
        negatives: list[list[int]] | None = None,
    ) -> Batch:
        """drawn: index of each record's positive that takes part; its other positives are masked, never negatives.
        negatives: indices of each record's hard negatives that take part; None: all."""
        negatives = [list(range(len(r.negatives))) for r in records] if negatives is None else negatives
        tokens, truncated = (self._read_tokens if self.tokens else self._make_tokens)(ids, records, drawn, negatives)
        guide_tokens = None
        if source in self.guides:
            guide_tokens = self.guides[source]([r.query for r in records], _documents(records, drawn, negatives))
        prompt_tokens = None
        if not self.spec.pool_prompt:
            prompts = [prompt for side in self._prompts(records, negatives) for prompt in side]
            prompt_tokens = [self._tokens_of(prompt) for prompt in prompts]
        row_keys = [[text_key(t) for t in r.positives] + [id_key(d) for d in r.doc_ids] for r in records]
        width = max((len(keys) for keys in row_keys), default=1)
        row_query = [query_key(r) for r in records]
        documents = [
            (text_key(r.positives[k]), id_key(r.doc_ids[k]) if r.doc_ids else NO_KEY, query, row)
            for row, (r, k, query) in enumerate(zip(records, drawn, row_query))
        ] + [
            (text_key(records[row].negatives[i]), NO_KEY, NO_KEY, row)
            for row, taken in enumerate(negatives)
            for i in taken
        ]
        keys = torch.tensor(documents, dtype=torch.int64).reshape(-1, len(DocumentKeys._fields))
        return Batch(
            row_ids=ids,
            tokens=tokens,
            row_keys=torch.tensor([k + [PAD_KEY] * (width - len(k)) for k in row_keys]).reshape(len(records), width),
            row_query=torch.tensor(row_query, dtype=torch.int64),
            documents=DocumentKeys.unpack(keys),
            scores=_numbers([r.score for r in records]),
            teacher_positive=_numbers([r.teacher_scores and r.teacher_scores[k] for r, k in zip(records, drawn)]),
            teacher_negative=_numbers([s for r, taken in zip(records, negatives) for s in _teacher(r, taken)]),
            global_rows=global_rows,
            truncated=truncated,
            seed=seed,
            source=source,
            guide_tokens=guide_tokens,
            prompt_tokens=prompt_tokens,
        )

    def _prompts(self, records: list[Record], negatives: list[list[int]]) -> tuple[list[str], list[str]]:
        """Returns the prompt of every query, and of every document: the drawn positives, then the negatives."""
        prompts = [self.spec.own_prompts.of_record(self.spec.rules, record) for record in records]
        of_negatives = [pair.passage for pair, texts in zip(prompts, negatives) for _ in texts]
        return [pair.query for pair in prompts], [pair.passage for pair in prompts] + of_negatives

    def _tokens_of(self, prompt: str) -> int:
        if prompt not in self._prompt_tokens:
            if len(self._prompt_tokens) >= KNOWN_PROMPTS:
                self._prompt_tokens.clear()
            self._prompt_tokens[prompt] = prompt_tokens(prompt, self.tokenizer)
        return self._prompt_tokens[prompt]

    def _make_tokens(
        self, _: list[int], records: list[Record], drawn: list[int], negatives: list[list[int]]
    ) -> tuple[list[list[int]], int]:
        """Returns token ids of queries, drawn positives and negatives, and the number of truncated texts."""
        rules = self.spec.rules
        documents = _documents(records, drawn, negatives)
        before_queries, before_documents = self._prompts(records, negatives)
        texts = [prompt + r.query for prompt, r in zip(before_queries, records)]
        documents = [prompt + text for prompt, text in zip(before_documents, documents, strict=True)]
        queries, truncated = tokenize(texts, "", rules.query_max_len, self.tokenizer)
        passages, also_truncated = tokenize(documents, "", rules.passage_max_len, self.tokenizer)
        return queries + passages, truncated + also_truncated

    def _read_tokens(
        self, ids: list[int], records: list[Record], drawn: list[int], negatives: list[list[int]]
    ) -> tuple[list[list[int]], int]:
        """Same as _make_tokens, from the shards. ids: the records' rows."""
        first = self.tokens.first_texts(ids)
        of_row = [start + 1 + len(r.positives) for start, r in zip(first.tolist(), records)]
        documents = [start + 1 + k for start, k in zip(first.tolist(), drawn)]
        documents += [start + i for start, taken in zip(of_row, negatives) for i in taken]
        queries, truncated = self.tokens.ids(first, self.spec.rules.query_max_len)
        passages, also_truncated = self.tokens.ids(np.array(documents, np.int64), self.spec.rules.passage_max_len)
        return queries + passages, truncated + also_truncated


def _documents(records: list[Record], drawn: list[int], negatives: list[list[int]]) -> list[str]:
    """Returns the texts of drawn positives, then of hard negatives."""
    positives = [r.positives[k] for r, k in zip(records, drawn)]
    return positives + [r.negatives[i] for r, taken in zip(records, negatives) for i in taken]


def _numbers(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


def _teacher(record: Record, negatives: list[int]) -> list[float | None]:
    """Returns the teacher's scores of these hard negatives, which follow those of the record's positives."""
    if record.teacher_scores is None:
        return [None] * len(negatives)
    return [record.teacher_scores[len(record.positives) + i] for i in negatives]
