"""Run on every rank of a process group: InfoNCE against a collection, each rank with its share of the documents."""

from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from trainer.distributed.collectives import World
from trainer.query_side import collection_loss as module
from trainer.query_side.collection_loss import Documents, Related, collection_loss

QUERIES, DOCUMENTS, D, TAU = 13, 103, 24, 0.05
SMALL_TILE = 7 * D  # numbers: 7 documents at a time
PLANTS = ("nothing", "sums count twice", "gradient is halved", "each share alone")


def setting(seed: int = 0) -> tuple[Tensor, Tensor, Related]:
    """Queries, documents, and pairs with queries of one, two and three positives, and others that are only left out."""
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (
        normalize(torch.randn(n, D, generator=generator, dtype=torch.float64), dim=1) for n in (QUERIES, DOCUMENTS)
    )
    askers = torch.tensor([q for q in range(QUERIES) for _ in range(1 + q % 4)])
    numbers = torch.cat([torch.randperm(DOCUMENTS, generator=generator)[: 1 + q % 4] for q in range(QUERIES)])
    place = torch.cat([torch.arange(1 + q % 4) for q in range(QUERIES)])
    return queries, documents, Related(askers, numbers, place < 3)


def plain(queries: Tensor, documents: Tensor, related: Related, temperature: float = TAU) -> Tensor:
    """The definition, a query and a positive at a time."""
    losses = []
    for row, query in enumerate(queries):
        mine = related.queries == row
        out, positives = related.documents[mine], related.documents[mine & related.positive]
        scores = documents @ query / temperature
        negatives = scores[[n for n in range(len(documents)) if n not in out.tolist()]]
        of_query = [torch.logsumexp(torch.cat([scores[p, None], negatives]), 0) - scores[p] for p in positives]
        losses.append(torch.stack(of_query).mean())
    return torch.stack(losses).mean()


def share_of(documents: Tensor, rank: int, size: int) -> Documents:
    """Shares of different sizes; the last of three ranks has none."""
    ends = {1: [0, len(documents)], 2: [0, 30, len(documents)], 3: [0, 70, len(documents), len(documents)]}[size]
    return Documents(documents[ends[rank] : ends[rank + 1]], ends[rank])


def main(out: str, model: str) -> None:
    """Writes the loss and the gradient of this rank, for every plant and both types, and those of LoRA by query_lora.
    model: a folder."""
    from tests.multiprocess import query_lora

    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size())
    queries, documents, related = setting()
    found = {}
    for plant in PLANTS:
        for dtype in (torch.float32, torch.float64):
            asked = queries.to(dtype, copy=True).requires_grad_()
            with patch.object(module, "TILE", SMALL_TILE), planted(plant):
                loss = collection_loss(
                    world, asked, share_of(documents.to(dtype), world.rank, world.size), related, TAU
                )
                loss.backward()
            found[plant, dtype] = loss.detach(), asked.grad
    torch.save(found | {"lora": query_lora.gradients(Path(model), world)}, Path(out) / f"{world.rank}.pt")
    dist.destroy_process_group()


def planted(plant: str):
    """A wrong factor, or a missing collective."""
    whole, loss = World.sum, module._loss_and_gradient
    if plant == "sums count twice":
        return patch.object(World, "sum", lambda self, values: 2 * whole(self, values))
    if plant == "each share alone":
        return patch.object(World, "sum", lambda self, values: values)
    if plant == "gradient is halved":
        return patch.object(module, "_loss_and_gradient", lambda *a: (loss(*a)[0], loss(*a)[1] / 2))
    return patch.object(module, "TAU", TAU, create=True)
