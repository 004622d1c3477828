"""A run file's loss over one global batch: its value, its gradients, and the exchange between ranks that it needs.

- A step gathers the embeddings that a loss needs of other ranks, once.
- Each rank computes its share of the loss: of its own rows, or 1 / world of a loss that needs all rows.
- One collective sums the gradients of the embeddings and gives every rank its own.
- With one rank nothing travels, and the code is the same.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from data_prep.common.errors import BadInput
from trainer.config.sections import DIRECTIONS, LOSSES, LossConfig
from trainer.distributed.collectives import World
from trainer.distributed.device import send
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys, DocumentScores
from trainer.loss.functions import cosent, cosine_mse, kl, margin_mse, shorten
from trainer.loss.guide import GuideVectors
from trainer.loss.info_nce import STATS, info_nce
from trainer.loss.own_negatives import own_info_nce
from trainer.loss.scope import Positions, Scope, own_statistics
from trainer.loss.user_functions import LossBatch, load_loss_fn


class Objective:
    """One loss section of the run file, applied to global batches. The trainer sets a learned `temperature` itself."""

    def __init__(
        self,
        config: LossConfig,
        normalised: bool,
        loss_fn: Callable | None = None,
        guide: Callable[[list[list[int]]], Tensor] | None = None,
    ):
        """normalised: the model's embeddings have length 1. loss_fn: replaces the loss that config names. guide: the
        model of config.guide, tokens of texts -> (texts, g) of length 1 without gradient; without it nothing can be
        computed of a loss that has one. Raises BadInput for a user's function that cannot be imported."""
        self.config, self.normalised = config, normalised
        self.terms = {getattr(loss_fn, "__name__", "loss_fn"): 1.0} if loss_fn else config.terms
        self.user = {name: loss_fn or load_loss_fn(name) for name in self.terms if loss_fn or name not in LOSSES}
        self.temperature = config.temperature
        self.directions, self.joint = DIRECTIONS[config.directions]
        whole = config.negatives != "device"
        in_batch = config.negatives == "batch" and "infonce" in self.terms
        # Losses that are no sum over rows need every row, InfoNCE needs all documents (or, by negatives: own, its
        # row's), the others their own only.
        self.gathers_all = whole and any(name == "cosent" or name in self.user for name in self.terms)
        self.gathers_queries = self.gathers_all or (in_batch and len(self.directions) > 1)
        self.gathers = in_batch or self.gathers_queries
        self.guide, self.guided = guide, config.guide is not None and "infonce" in self.terms
        self.gathers_guide = self.guided and in_batch

    @property
    def collectives(self) -> int:
        """Collectives of a call with several ranks: embeddings, facts about them, their gradient, the guide's
        embeddings."""
        return 3 * self.gathers + self.gathers_all + self.gathers_guide

    @property
    def stat_names(self) -> list[str]:
        """Names of the sums that a call returns."""
        return ["loss", "temperature_grad", *STATS, *(f"loss_{name.rpartition(':')[2]}" for name in self.terms)]

    def guide_vectors(self, batch: Batch) -> Tensor | None:
        """(texts, g) embeddings of this rank's texts by the guide; None: the loss has none."""
        return self.guide(batch.guide_tokens) if self.guided else None

    def __call__(
        self,
        embeddings: Tensor,
        batch: Batch,
        counts: list[tuple[int, int]],
        world: World,
        guide_vectors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the gradient of the (texts, d) embeddings by this rank's share of the loss, and sums to log: (names,)
        float64 on the CPU, named by stat_names; over ranks they add up to the global batch's. Collective.
        counts: (rows, documents) of each rank. guide_vectors: of the same texts, see guide_vectors()."""
        scope = self._scope(embeddings.detach(), batch, counts, world)
        if self.guided:
            scope.guide = self._guide(guide_vectors, batch, counts, world)
        leaves = [scope.queries.requires_grad_(), scope.documents.requires_grad_()]
        temperature: float | Tensor = self.temperature
        if self.config.temperature_lr is not None:
            temperature = embeddings.new_full((), self.temperature)
            leaves.append(temperature.requires_grad_())
        # a rank without rows has a graph too
        zero = sum(leaf.sum() * 0.0 for leaf in leaves)
        total, by_term, stats = zero, dict.fromkeys(self.terms, zero.detach()), None
        for dim, dim_weight in self.config.dims:
            queries, documents = scope.queries, scope.documents
            if dim is not None:
                queries, documents = (shorten(x, dim, self.normalised) for x in (queries, documents))
            for name, weight in self.terms.items():
                value, term_stats = self._term(name, queries, documents, scope, batch, temperature)
                total = total + weight * dim_weight * value
                by_term[name] = by_term[name] + dim_weight * value.detach()
                stats = term_stats if stats is None else stats  # of the first size of embeddings
        query_grad, doc_grad, *rest = torch.autograd.grad(total, leaves)
        temperature_grad = rest[0] if rest else torch.zeros_like(total)
        stats = own_statistics(scope, batch) if stats is None else stats
        sums = [total.detach(), temperature_grad, *stats.unbind(), *by_term.values()]
        return self._home(query_grad, doc_grad, counts, world), _on_host(sums)

    def _term(
        self, name: str, queries: Tensor, documents: Tensor, scope: Scope, batch: Batch, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns this rank's share of one term of the global mean loss, and InfoNCE's statistics."""
        config, rows = self.config, scope.rows
        if name in self.user and not scope.positives.numel():  # a rank alone without rows: a mean would be nan
            return queries.sum() * 0.0, None
        if name in self.user:
            return self._user_term(name, queries, documents, scope, batch, temperature) * scope.share, None
        if name == "infonce" and config.negatives != "own":
            out = info_nce(
                queries, documents, rows, scope.target, temperature, directions=self.directions, joint=self.joint,
                mask=partial(scope.duplicates, batch) if config.mask_duplicates else None, margin=config.mask_margin,
                ratio=config.mask_ratio, doc_row=scope.doc_row if self.joint else None, guide=scope.guide,
            )  # fmt: skip
            return out.loss / batch.global_rows, out.stats
        if name == "cosine":
            scores = send(batch.scores.to(queries.dtype), queries.device)
            return cosine_mse(queries[rows], documents[scope.target], scores) / batch.global_rows, None
        if name == "cosent":
            scores = scope.scores.score[scope.positives].to(queries)
            return cosent(queries, documents[scope.positives], scores, temperature) * scope.share, None
        own = (queries[rows], documents, scope.target, send(batch.negative_row, rows.device), scope.own_negatives)
        if name == "infonce":
            out = own_info_nce(
                *own, temperature, excluded=scope.own_excluded(batch, config.mask_duplicates),
                margin=config.mask_margin, ratio=config.mask_ratio,
            )  # fmt: skip
            return out.loss / batch.global_rows, out.stats
        scores = batch.teacher_positive, batch.teacher_negative
        teacher = [send(x.to(queries.dtype), queries.device) for x in scores]
        if name == "margin_mse":
            return margin_mse(*own, *teacher) / max(1, scope.hard_negatives), None
        assert name == "kl", name
        return kl(*own, *teacher, temperature, config.teacher_temperature) / batch.global_rows, None

    def _user_term(
        self, name: str, queries: Tensor, documents: Tensor, scope: Scope, batch: Batch, temperature: float | Tensor
    ) -> Tensor:
        loss_batch = LossBatch(
            row_ids=scope.scores.row_id[scope.positives],
            scores=scope.scores.score[scope.positives].to(queries),
            negative_embeds=documents[scope.negatives],
            negative_row=scope.doc_row[scope.negatives],
            teacher_positive=scope.scores.teacher[scope.positives].to(queries),
            teacher_negative=scope.scores.teacher[scope.negatives].to(queries),
            temperature=temperature,
            source=batch.source,
        )
        value = self.user[name](queries, documents[scope.positives], loss_batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            error = BadInput(f"loss.name: {name} must return a scalar tensor that depends on the embeddings")
            error.on_every_rank = self.gathers_all
            raise error
        return value.reshape(())

    def _scope(self, embeddings: Tensor, batch: Batch, counts: list[tuple[int, int]], world: World) -> Scope:
        """Gathers the embeddings and facts that the loss needs of other ranks. Collective."""
        device, b = embeddings.device, batch.rows
        queries, documents = embeddings[:b], embeddings[b:]
        keys, scores = DocumentKeys.unpack(send(batch.documents.pack(), device)), batch.document_scores()
        blocks, me, share = [(b, documents.shape[0])], 0, b / batch.global_rows
        if self.gathers:
            blocks, me, share = counts, world.rank, 1.0 / world.size
            documents_of_rank = [n for _, n in counts]
            keys = DocumentKeys.unpack(world.gather_rows(keys.pack(), documents_of_rank))
            if self.gathers_all:
                packed = scores.pack().to(device if world.size > 1 else "cpu")
                scores = DocumentScores.unpack(world.gather_rows(packed, documents_of_rank))
            queries, documents = self._gather(embeddings, b, counts, world)
        positions = Positions(blocks, device)
        row_start = positions.row_starts[me] if self.gathers_queries else 0
        real = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        return Scope(
            queries=queries,
            documents=documents,
            rows=row_start + torch.arange(b, device=device),
            target=positions.positives[me],
            positives=torch.cat(positions.positives),
            negatives=torch.cat(positions.negatives),
            own_negatives=positions.negatives[me],
            doc_row=keys.row + positions.row_start_of_doc,
            keys=keys,
            scores=DocumentScores(*(send(x.to(real if x.is_floating_point() else x.dtype), device) for x in scores)),
            share=share,
            hard_negatives=sum(n - r for r, n in counts),
            by_row=len(self.directions) > 1,
        )

    def _gather(self, texts: Tensor, rows: int, counts: list[tuple[int, int]], world: World) -> tuple[Tensor, Tensor]:
        """Returns the queries and documents of the scope from this rank's (texts, …), queries first. Collective."""
        if not self.gathers_queries:
            return texts[:rows], world.gather_rows(texts[rows:], [n for _, n in counts])
        pool = world.gather_rows(texts, [r + n for r, n in counts])
        parts = pool.split([size for block in counts for size in block])
        return torch.cat(parts[0::2]), torch.cat(parts[1::2])

    def _guide(self, vectors: Tensor, batch: Batch, counts: list[tuple[int, int]], world: World) -> GuideVectors:
        """Returns the guide's embeddings as the loss has its own. Collective where these travel."""
        assert vectors is not None, "a loss with a guide needs the guide's embeddings"
        both = vectors[: batch.rows], vectors[batch.rows :]
        if self.gathers_guide:
            both = self._gather(vectors, batch.rows, counts, world)
        return GuideVectors(*both, self.config.guide.margin, self.config.guide.relative_margin)

    def _home(self, query_grad: Tensor, doc_grad: Tensor, counts: list[tuple[int, int]], world: World) -> Tensor:
        """Returns the (texts, d) gradient of this rank's embeddings, summed over ranks. Collective."""
        if not self.gathers:
            return torch.cat([query_grad, doc_grad])
        docs = [n for _, n in counts]
        if not self.gathers_queries:
            return torch.cat([query_grad, world.sum_home(doc_grad, docs)])
        pairs = zip(query_grad.split([r for r, _ in counts]), doc_grad.split(docs))
        return world.sum_home(torch.cat([part for pair in pairs for part in pair]), [r + n for r, n in counts])


def _on_host(numbers: list[Tensor]) -> Tensor:
    """(numbers,) float64 on the CPU, brought there together: each copy waits for the device."""
    real = torch.float32 if numbers[0].device.type == "mps" else torch.float64
    return torch.stack([number.to(real) for number in numbers]).cpu().double()
