"""One optimizer step's gradient: embed -> loss over the whole global batch -> gradients, exact at any memory budget.

Two passes, after GradCache (Gao et al. 2021, arXiv:2101.06983): the loss needs every embedding of the global batch but
only d numbers per text, so chunks are embedded first, the loss gives the gradient of every embedding, and each chunk is
then back-propagated with its own. Chunks that fit `micro_batch_tokens` keep their activations and cost nothing extra;
the others are embedded again. Gradients cross ranks once per step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.collectives import World
from trainer.losses import STATS, duplicate_mask, info_nce

CHUNK_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}  # per forward pass: what the caches like


@dataclass
class Batch:
    """A rank's slice of one global batch. Texts: b queries, then b positives (one each, in order), then negatives.

    tokens: token ids of each text. row_keys, row_query, doc_keys: see losses.duplicate_mask (documents are the texts
    after the queries). global_rows: rows of the whole global batch over all ranks.
    """

    row_ids: list[int]
    tokens: list[list[int]]
    row_keys: Tensor
    row_query: Tensor
    doc_keys: Tensor
    global_rows: int
    truncated: int = 0
    seed: int = 0  # of this step and rank: fixes dropout, also where a chunk is embedded twice

    @property
    def rows(self) -> int:
        return len(self.row_ids)


@dataclass
class StepStats:
    """loss: mean over the global batch. The rest are means or totals over all ranks."""

    loss: float
    values: dict[str, float] = field(default_factory=dict)


def make_chunks(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of texts, longest first, in chunks of at most `budget` padded tokens (one text may exceed it alone)."""
    chunks: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not chunks or (len(chunks[-1]) + 1) * width > budget:
            chunks.append([])
            width = lengths[i]  # sorted: the first text of a chunk is its longest
        chunks[-1].append(i)
    return chunks


def kept_chunks(chunks: list[list[int]], lengths: list[int], budget: int) -> int:
    """How many chunks, counted from the last (shortest), keep their activations within `budget` padded tokens."""
    kept, used = 0, 0
    for chunk in reversed(chunks):
        used += len(chunk) * lengths[chunk[0]]
        if used > budget:
            break
        kept += 1
    return kept


def loss_and_embedding_gradients(
    embeddings: Tensor, batch: Batch, counts: list[list[int]], world: World, temperature: float, scope: str, mask: bool
) -> tuple[Tensor, Tensor]:
    """The global mean loss's gradient for this rank's embeddings, (texts, d), and the stats vector of this rank.

    counts: for each rank (rows, documents). The gradient of a document collects the losses of all ranks' queries.
    """
    queries = embeddings[: batch.rows].detach().requires_grad_()
    local_docs = embeddings[batch.rows :].detach()
    device = embeddings.device
    doc_counts = [docs for _, docs in counts]
    if scope == "batch":
        documents = world.gather_rows(local_docs, doc_counts).requires_grad_()
        doc_keys = world.gather_rows(batch.doc_keys.to(device), doc_counts)
        first = sum(doc_counts[: world.rank])
    else:
        documents, doc_keys, first = local_docs.clone().requires_grad_(), batch.doc_keys.to(device), 0
    target = first + torch.arange(batch.rows, device=device)
    row_keys, row_query = batch.row_keys.to(device), batch.row_query.to(device)

    def duplicates(start: int, stop: int) -> Tensor:
        return duplicate_mask(row_keys[start:stop], row_query[start:stop], doc_keys)

    out = info_nce(queries, documents, target, duplicates if mask else None, temperature)
    # A sum over local rows, divided by the rows of the whole batch: exact for uneven slices too.
    query_grad, doc_grad = torch.autograd.grad(out.loss / batch.global_rows, [queries, documents])
    if scope == "batch":
        doc_grad = world.sum_home(doc_grad, doc_counts)
    stats = torch.cat([out.loss.detach()[None], out.stats]).cpu().double()
    return torch.cat([query_grad, doc_grad]), stats


def compute_gradients(engine, batch: Batch, loss, micro_batch_tokens: int) -> StepStats:
    """Leaves the gradient of the global batch's mean loss on the engine's parameters; returns what to log.

    engine: TorchEngine or ZeroEngine. loss: config.LossConfig. Collective: every rank calls it with its own slice.
    """
    world: World = engine.world
    lengths = [len(ids) for ids in batch.tokens]
    chunks = make_chunks(lengths, min(CHUNK_TOKENS[engine.device.type], micro_batch_tokens))
    kept = kept_chunks(chunks, lengths, micro_batch_tokens)
    padded = sum(len(chunk) * lengths[chunk[0]] for chunk in chunks)
    table = world.gather_ints([batch.rows, len(lengths) - batch.rows, len(chunks), kept]).tolist()
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
                out = engine.embed(*pad(chunk, batch.tokens, engine.device), seed=batch.seed + i)
            if i >= first_kept:
                graphs[i] = out
            parts.append(out[: len(chunk)].detach())
        order = torch.tensor([i for chunk in chunks for i in chunk], dtype=torch.int64, device=engine.device)
        # a rank may have no rows of a small last batch
        stacked = torch.cat(parts or [torch.zeros((0, engine.embedder.size), device=engine.device)])
        embeddings = torch.empty_like(stacked).index_copy_(0, order, stacked)
        gradient, stats = loss_and_embedding_gradients(
            embeddings, batch, counts, world, loss.temperature, loss.negatives, loss.mask_duplicates
        )
        gradient = gradient * engine.gradient_factor
        # Kept graphs go first: their memory is free again before any chunk is embedded a second time.
        for i in [*range(first_kept, len(chunks)), *range(first_kept)]:
            chunk = chunks[i]
            out = graphs.pop(i, None)
            if out is None:
                out = engine.embed(*pad(chunk, batch.tokens, engine.device), seed=batch.seed + i)
            upstream = torch.zeros_like(out)
            upstream[: len(chunk)] = gradient[chunk]
            engine.backward((out * upstream).sum())
    return _summarise(world.sum(torch.cat([stats, _usage(batch, lengths, padded, stats)])), batch)


def pad(chunk: list[int], tokens: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (texts, longest); an empty chunk (lockstep only) becomes one text of one token."""
    texts = [tokens[i] for i in chunk] or [[0]]
    width = len(max(texts, key=len))
    ids = torch.zeros((len(texts), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids.to(device), mask.to(device)


USAGE = ("texts", "tokens", "padded_tokens", "truncated_texts")


def _usage(batch: Batch, lengths: list[int], padded: int, like: Tensor) -> Tensor:
    return torch.tensor([len(lengths), sum(lengths), padded, batch.truncated], dtype=like.dtype)


def _summarise(totals: Tensor, batch: Batch) -> StepStats:
    sums = dict(zip(("loss", *STATS, *USAGE), totals.tolist()))
    rows = batch.global_rows
    return StepStats(
        loss=sums["loss"] / rows,
        values={
            "positive_similarity": sums["positive_similarity"] / rows,
            "negative_similarity": sums["negative_similarity"] / max(1.0, sums["negatives"]),
            "negatives_per_query": sums["negatives"] / rows,
            "masked_negatives": int(sums["masked_negatives"]),
            "batch_accuracy": sums["correct"] / rows,
            "texts": int(sums["texts"]),
            "tokens": int(sums["tokens"]),
            "padding_share": 1.0 - sums["tokens"] / max(1.0, sums["padded_tokens"]),
            "truncated_texts": int(sums["truncated_texts"]),
        },
    )
