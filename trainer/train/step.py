"""One optimizer step's gradient: embed -> loss over the global batch -> gradients, exact at any memory budget.

Two passes, after GradCache (Gao et al. 2021, arXiv:2101.06983):
- Texts are embedded in chunks. The loss needs every embedding of the global batch, but only d numbers per text.
- The loss returns the gradient of every embedding; each chunk is then back-propagated with its part.
- As many chunks as fit `micro_batch_tokens` keep their activations; the others are embedded a second time.
- Ranks exchange one StepRow at the start, what the loss needs in the middle, and gradients once at the end.
- Every rank makes the same collectives, whether it has rows or not.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.distributed.device import send
from trainer.distributed.step_row import NO_WISHES, StepRow, Wishes
from trainer.engine.chunks import CHUNK_TOKENS, chunk_tokens, cost_of, kept_chunks, lay, make_chunks
from trainer.engine.protocol import Engine
from trainer.loss.batch import Batch
from trainer.loss.objective import Objective


@dataclass
class StepStats:
    """Report of a step, the same on every rank."""

    loss: float  # mean over the global batch
    temperature_grad: float = 0.0  # d(loss) / d(temperature), 0 where the temperature is fixed
    values: dict[str, float | None] = field(default_factory=dict)  # to log: means or totals over all ranks
    wishes: Wishes = NO_WISHES  # of all ranks


def compute_gradients(
    engine: Engine, batch: Batch, objective: Objective, micro_batch_tokens: int, wishes: Wishes = NO_WISHES
) -> StepStats:
    """Leaves the gradient of the global batch's mean loss on the engine's parameters; returns what to log.

    wishes: of this rank; StepStats has those of all. Collective: every rank calls it with its own slice.
    """
    world = engine.world
    lengths = [len(ids) for ids in batch.tokens]
    packed = engine.embedder.packing is not None
    chunks = make_chunks(lengths, chunk_tokens(CHUNK_TOKENS[engine.device.type], micro_batch_tokens), packed)
    costs = [cost_of(chunk, lengths, packed) for chunk in chunks]
    keep = kept_chunks(costs, micro_batch_tokens)
    chunks, kept = [chunks[i] for i in sorted(range(len(chunks)), key=keep.__contains__)], len(keep)  # kept ones last
    if not chunks:  # no row of a small last batch; an engine may wait for a rank that never goes backward
        chunks, kept = [[]], 1
    own = StepRow(batch.rows, len(lengths) - batch.rows, len(chunks), kept, *wishes)
    ranks = [StepRow(*row) for row in world.gather_ints([*own]).tolist()]
    counts = [(row.rows, row.documents) for row in ranks]
    if engine.lockstep:  # every forward pass is a collective: all ranks run the same number of each kind
        rounds, embedded_twice = max(row.chunks for row in ranks), max(row.chunks - row.kept for row in ranks)
        chunks += [[] for _ in range(rounds - len(chunks))]
        kept = rounds - embedded_twice
    first_kept = len(chunks) - kept
    guide_vectors = objective.guide_vectors(batch)  # before activations are kept

    with engine.accumulate():
        graphs: dict[int, Tensor] = {}
        parts: list[Tensor] = []
        for i, chunk in enumerate(chunks):
            with torch.set_grad_enabled(i >= first_kept):
                out = engine.embed(*lay(chunk, batch.tokens), seed=batch.seed + i, prompts=batch.prompts_of(chunk))
            if i >= first_kept:
                graphs[i] = out
            parts.append(out[: len(chunk)].detach())
        order = _order_of(chunks, engine)
        embeddings = _in_order(parts, order)
        gradient, sums = objective(embeddings, batch, counts, world, guide_vectors)
        by_chunk = (gradient[order] * engine.gradient_factor).split([len(chunk) for chunk in chunks])
        # Kept graphs go first: their memory is free again before any chunk is embedded a second time.
        backwards = [*range(first_kept, len(chunks)), *range(first_kept)]
        for i in backwards:
            chunk = chunks[i]
            out = graphs.pop(i, None)
            if out is None:
                out = engine.embed(*lay(chunk, batch.tokens), seed=batch.seed + i, prompts=batch.prompts_of(chunk))
            upstream = torch.zeros_like(out)
            upstream[: len(chunk)] = by_chunk[i]
            engine.backward((out * upstream).sum(), last=i == backwards[-1])
    usage = torch.tensor([len(lengths), sum(lengths), sum(costs), batch.truncated], dtype=torch.float64)  # as in USAGE
    totals = world.sum(torch.cat([sums, usage]))
    stats = _summarise(dict(zip([*objective.stat_names, *USAGE], totals.tolist())), batch.global_rows)
    return replace(stats, wishes=Wishes.of_all(ranks))


def compute_loss(engine: Engine, batch: Batch, objective: Objective) -> float:
    """Returns the mean loss of the global batch, the same on every rank: compute_gradients without dropout, and without
    a gradient on any parameter. Collective."""
    world, lengths = engine.world, [len(ids) for ids in batch.tokens]
    packed = engine.embedder.packing is not None
    chunks = make_chunks(lengths, CHUNK_TOKENS[engine.device.type], packed) or [[]]
    ranks = world.gather_ints([batch.rows, len(lengths) - batch.rows, len(chunks)]).tolist()
    if engine.lockstep:
        chunks += [[] for _ in range(max(rank[2] for rank in ranks) - len(chunks))]
    guide_vectors = objective.guide_vectors(batch)
    was_training = engine.embedder.training
    engine.embedder.eval()
    with torch.no_grad():
        parts = [
            engine.embed(*lay(chunk, batch.tokens), seed=0, prompts=batch.prompts_of(chunk))[: len(chunk)]
            for chunk in chunks
        ]
    engine.embedder.train(was_training)
    embeddings = _in_order(parts, _order_of(chunks, engine))
    _, sums = objective(embeddings, batch, [(rows, documents) for rows, documents, _ in ranks], world, guide_vectors)
    return float(world.sum(sums)[objective.stat_names.index("loss")])


def _order_of(chunks: list[list[int]], engine: Engine) -> Tensor:
    """(texts,) int64: the text at each position of the chunks."""
    return send(torch.tensor([i for chunk in chunks for i in chunk], dtype=torch.int64), engine.device)


def _in_order(parts: list[Tensor], order: Tensor) -> Tensor:
    """Returns the (texts, d) embeddings in the order of the texts."""
    stacked = torch.cat(parts)
    return torch.empty_like(stacked).index_copy_(0, order, stacked)


def planned_collectives(world: int, objective: Objective, buckets: int) -> int:
    """Collectives of World in a step: step rows, the loss's, the gradients' buckets, sums to log. buckets: Engine's."""
    return 0 if world == 1 else 2 + objective.collectives + buckets


USAGE = ("texts", "tokens", "run_tokens", "truncated_texts")


def _summarise(sums: dict[str, float], rows: int) -> StepStats:
    values = {
        "texts": int(sums["texts"]),
        "tokens": int(sums["tokens"]),
        "padding_share": 1.0 - sums["tokens"] / max(1.0, sums["run_tokens"]),
        "truncated_texts": int(sums["truncated_texts"]),
        "positive_similarity": sums["positive_similarity"] / rows,
        # None without negatives
        "negative_similarity": sums["negative_similarity"] / sums["negatives"] if sums["negatives"] else None,
        "masked_negatives": int(sums["masked_negatives"]),
    }
    if "loss_infonce" in sums:
        values |= {"negatives_per_query": sums["negatives"] / rows, "batch_accuracy": sums["correct"] / rows}
    terms = {name: value for name, value in sums.items() if name.startswith("loss_")}
    return StepStats(sums["loss"], sums["temperature_grad"], values | (terms if len(terms) > 1 else {}))
