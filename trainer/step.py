"""One optimizer step's gradient: embed -> loss over the whole global batch -> gradients, exact at any memory budget.

Two passes, after GradCache (Gao et al. 2021, arXiv:2101.06983): the loss needs every embedding of the global batch but
only d numbers per text, so chunks are embedded first, the loss gives the gradient of every embedding, and each chunk is
then back-propagated with its own. Chunks that fit `micro_batch_tokens` keep their activations and cost nothing extra;
the others are embedded again. Gradients cross ranks once per step.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.collectives import World
from trainer.objective import Objective

CHUNK_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}  # per forward pass: what the caches like


@dataclass
class Batch:
    """A rank's slice of one global batch. Texts: b queries, then b positives (one each, in order), then k negatives.

    tokens: token ids of each text. row_keys, row_query, doc_keys: see losses.duplicate_mask (documents are the texts
    after the queries). negative_row: (k,) which row each hard negative belongs to. scores, teacher_positive: (b,),
    teacher_negative: (k,), nan where the data has none. global_rows: rows of the whole global batch over all ranks.
    """

    row_ids: list[int]
    tokens: list[list[int]]
    row_keys: Tensor
    row_query: Tensor
    doc_keys: Tensor
    negative_row: Tensor
    scores: Tensor
    teacher_positive: Tensor
    teacher_negative: Tensor
    global_rows: int
    truncated: int = 0
    seed: int = 0  # of this step and rank: fixes dropout, also where a chunk is embedded twice
    source: str = ""

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    def doc_facts_int(self) -> Tensor:
        """(documents, 4) int64: doc_keys, and the row in this slice that the document belongs to."""
        row = torch.cat([torch.arange(self.rows), self.negative_row])
        return torch.cat([self.doc_keys, row[:, None]], dim=1)

    def doc_facts_float(self) -> Tensor:
        """(documents, 3) float64: row id and score of the row (nan for hard negatives), teacher score."""
        facts = torch.full((len(self.tokens) - self.rows, 3), float("nan"), dtype=torch.float64)
        facts[: self.rows, 0] = torch.tensor(self.row_ids, dtype=torch.float64)
        facts[: self.rows, 1] = self.scores
        facts[:, 2] = torch.cat([self.teacher_positive, self.teacher_negative])
        return facts


@dataclass
class StepStats:
    """loss: mean over the global batch. temperature_grad: its derivative, 0 where the temperature is fixed.

    values: to log, means or totals over all ranks. wishes: see compute_gradients.
    """

    loss: float
    temperature_grad: float = 0.0
    values: dict[str, float | None] = field(default_factory=dict)
    wishes: tuple[int, int] = (0, 0)


def make_chunks(lengths: list[int], budget: int, packed: bool) -> list[list[int]]:
    """Indices of texts, longest first, in chunks that cost at most `budget` tokens (one text may cost more alone)."""
    chunks: list[list[int]] = []
    cost = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        width = lengths[i] if packed or not chunks else lengths[chunks[-1][0]]  # sorted: the first is the longest
        if not chunks or cost + width > budget:
            chunks.append([])
            cost, width = 0, lengths[i]
        chunks[-1].append(i)
        cost += width
    return chunks


def cost_of(chunk: list[int], lengths: list[int], packed: bool) -> int:
    """Tokens that a chunk is run with: those of its texts, and where it is not packed the padding."""
    return sum(lengths[i] for i in chunk) if packed else len(chunk) * lengths[chunk[0]]


def kept_chunks(costs: list[int], budget: int) -> int:
    """How many chunks, counted from the last (shortest texts), keep their activations within `budget` tokens."""
    kept, used = 0, 0
    for cost in reversed(costs):
        used += cost
        if used > budget:
            break
        kept += 1
    return kept


def compute_gradients(
    engine, batch: Batch, objective: Objective, micro_batch_tokens: int, wishes: tuple[int, int] = (0, 0)
) -> StepStats:
    """Leaves the gradient of the global batch's mean loss on the engine's parameters; returns what to log.

    engine: TorchEngine or ZeroEngine. wishes: (stop, save) of this rank, numbers that travel with what is exchanged
    anyway; the largest of all ranks come back, the same on each. Collective: every rank calls it with its own slice.
    """
    world: World = engine.world
    lengths = [len(ids) for ids in batch.tokens]
    packed = engine.embedder.packing is not None
    chunks = make_chunks(lengths, min(CHUNK_TOKENS[engine.device.type], micro_batch_tokens), packed)
    costs = [cost_of(chunk, lengths, packed) for chunk in chunks]
    kept = kept_chunks(costs, micro_batch_tokens)
    if not chunks:  # no row of a small last batch; an engine may wait for a rank that never goes backward
        chunks, kept = [[]], 1
    table = world.gather_ints([batch.rows, len(lengths) - batch.rows, len(chunks), kept, *wishes]).tolist()
    counts = [row[:2] for row in table]
    if engine.lockstep:  # every forward pass is a collective: all ranks run the same number of each kind
        rounds, embedded_twice = max(row[2] for row in table), max(row[2] - row[3] for row in table)
        chunks += [[] for _ in range(rounds - len(chunks))]
        kept = rounds - embedded_twice
    first_kept = len(chunks) - kept

    with engine.accumulate():
        graphs: dict[int, Tensor] = {}
        parts: list[Tensor] = []
        for i, chunk in enumerate(chunks):
            with torch.set_grad_enabled(i >= first_kept):
                out = engine.embed(*lay(chunk, batch.tokens), seed=batch.seed + i)
            if i >= first_kept:
                graphs[i] = out
            parts.append(out[: len(chunk)].detach())
        order = torch.tensor([i for chunk in chunks for i in chunk], dtype=torch.int64, device=engine.device)
        stacked = torch.cat(parts)
        embeddings = torch.empty_like(stacked).index_copy_(0, order, stacked)
        gradient, sums = objective(embeddings, batch, counts, world)
        gradient = gradient * engine.gradient_factor
        # Kept graphs go first: their memory is free again before any chunk is embedded a second time.
        for i in [*range(first_kept, len(chunks)), *range(first_kept)]:
            chunk = chunks[i]
            out = graphs.pop(i, None)
            if out is None:
                out = engine.embed(*lay(chunk, batch.tokens), seed=batch.seed + i)
            upstream = torch.zeros_like(out)
            upstream[: len(chunk)] = gradient[chunk]
            engine.backward((out * upstream).sum())
    totals = world.sum(torch.cat([sums, _usage(batch, lengths, sum(costs))]))
    stats = _summarise(dict(zip([*objective.stat_names, *USAGE], totals.tolist())), batch.global_rows)
    return replace(stats, wishes=(max(row[4] for row in table), max(row[5] for row in table)))


def planned_collectives(world: int, objective: Objective, buckets: int) -> int:
    """How many of trainer.collectives a step makes: sizes, the loss's, the gradients' buckets, what is logged.

    buckets: of the engine; 0 with DeepSpeed, which reduces gradients by itself.
    """
    return 0 if world == 1 else 2 + objective.collectives + buckets


def lay(chunk: list[int], tokens: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Token ids of a chunk's texts end to end, and their lengths; an empty chunk is one token."""
    texts = [tokens[i] for i in chunk] or [[0]]
    return torch.tensor([token for text in texts for token in text]), [len(text) for text in texts]


USAGE = ("texts", "tokens", "run_tokens", "truncated_texts")


def _usage(batch: Batch, lengths: list[int], run: int) -> Tensor:
    return torch.tensor([len(lengths), sum(lengths), run, batch.truncated], dtype=torch.float64)


def _summarise(sums: dict[str, float], rows: int) -> StepStats:
    values = {
        "texts": int(sums["texts"]),
        "tokens": int(sums["tokens"]),
        "padding_share": 1.0 - sums["tokens"] / max(1.0, sums["run_tokens"]),
        "truncated_texts": int(sums["truncated_texts"]),
        "positive_similarity": sums["positive_similarity"] / rows,
        # of rows without negatives there is none
        "negative_similarity": sums["negative_similarity"] / sums["negatives"] if sums["negatives"] else None,
        "masked_negatives": int(sums["masked_negatives"]),
    }
    if "loss_infonce" in sums:
        values |= {"negatives_per_query": sums["negatives"] / rows, "batch_accuracy": sums["correct"] / rows}
    terms = {name: value for name, value in sums.items() if name.startswith("loss_")}
    return StepStats(sums["loss"], sums["temperature_grad"], values | (terms if len(terms) > 1 else {}))
