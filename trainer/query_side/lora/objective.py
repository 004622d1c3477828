"""InfoNCE of a batch's queries against a whole collection, as a step of the trainer asks for it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.distributed.collectives import World
from trainer.loss.batch import Batch
from trainer.loss.exchange import DocumentKeys
from trainer.loss.info_nce import STATS
from trainer.query_side.collection_loss import Documents, Related, collection_loss


@dataclass(frozen=True)
class CollectionObjective:
    """The loss of one global batch, for trainer.train.step.compute_gradients in place of an Objective.

    Its sums are the loss alone: the other statistics of a batch are zero, and nothing logs them.
    """

    documents: Documents
    related: Related  # rows of the global batch, in the order of the ranks
    temperature: float
    device: torch.device  # of the scores; the CPU for MPS, which has no float64

    stat_names = ("loss", "temperature_grad", *STATS)

    def guide_vectors(self, batch: Batch) -> None:
        """Returns None: the loss has no guide."""

    def __call__(
        self, embeddings: Tensor, batch: Batch, counts: list[tuple[int, int]], world: World, _: None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the (b, d) gradient of this rank's queries by the global mean loss, and the sums. Collective.

        embeddings: (b, d) of this rank's queries, of any length. counts: (queries, 0) of each rank.
        """
        rows = [queries for queries, _ in counts]
        whole = world.gather_rows(embeddings.detach(), rows).to(self.device).requires_grad_()  # (B, d)
        unit = normalize(whole, dim=1)
        loss = collection_loss(world, unit, self.documents, self.related, self.temperature)
        (gradient,) = torch.autograd.grad(loss, whole)
        first = sum(rows[: world.rank])
        sums = torch.zeros(len(self.stat_names), dtype=torch.float64)
        sums[0] = loss.item() / world.size  # summed over ranks, it is the loss again
        return gradient[first : first + rows[world.rank]].to(embeddings.device), sums


def query_batch(tokens: list[list[int]], prompts: list[int] | None, global_rows: int) -> Batch:
    """Returns a rank's slice of a global batch of queries, without documents. prompts: see Batch.prompt_tokens."""
    count = len(tokens)
    none, unknown = torch.empty(0, dtype=torch.float64), torch.full((count,), torch.nan, dtype=torch.float64)
    return Batch(
        row_ids=list(range(count)),
        tokens=tokens,
        row_keys=torch.empty(count, 0, dtype=torch.int64),
        row_query=torch.zeros(count, dtype=torch.int64),
        documents=DocumentKeys.unpack(torch.empty(0, len(DocumentKeys._fields), dtype=torch.int64)),
        scores=unknown,
        teacher_positive=unknown,
        teacher_negative=none,
        global_rows=global_rows,
        prompt_tokens=prompts,
    )
