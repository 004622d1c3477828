"""One optimizer step's gradient: embed -> loss over the whole global batch -> gradients, exact at any memory budget.

Two passes, after GradCache (Gao et al. 2021, arXiv:2101.06983): the loss needs every embedding of the global batch but
only d numbers per text, so chunks are embedded first, the loss gives the gradient of every embedding, and each chunk is
then back-propagated with its own. Chunks that fit `micro_batch_tokens` keep their activations and cost nothing extra;
the others are embedded again. Gradients cross ranks once per step.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.distributed.collectives import World
from trainer.engine.chunks import CHUNK_TOKENS, cost_of, kept_chunks, lay, make_chunks
from trainer.loss.batch import Batch
from trainer.loss.objective import Objective


@dataclass
class StepStats:
    """loss: mean over the global batch. temperature_grad: its derivative, 0 where the temperature is fixed.

    values: to log, means or totals over all ranks. wishes: see compute_gradients.
    """

    loss: float
    temperature_grad: float = 0.0
    values: dict[str, float | None] = field(default_factory=dict)
    wishes: tuple[int, int] = (0, 0)


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
    """How many of trainer.distributed.collectives a step makes: sizes, the loss's, the gradients' buckets, what is logged.

    buckets: of the engine; 0 with DeepSpeed, which reduces gradients by itself.
    """
    return 0 if world == 1 else 2 + objective.collectives + buckets


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
