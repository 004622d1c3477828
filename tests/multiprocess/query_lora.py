"""Raw gradients of LoRA on the encoder of queries, against documents that stay as they are."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests import tiny
from tests.multiprocess import collection
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.chunks import lay
from trainer.engine.start import Runtime
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side import collection_loss
from trainer.query_side.fit import TEMPERATURE, Parts, Queries
from trainer.query_side.lora.query_encoder import QueryEncoder
from trainer.query_side.lora.training import Training

D, RANK, CPU = 32, 4, torch.device("cpu")
TIGHT = 40  # tokens: most chunks are embedded twice
BATCHES = {"all but two": [3, 0, 12, 7, 1, 5, 9, 2, 10, 4, 6], "two": [8, 11]}  # of two, three ranks leave one idle
PLANTS = (*collection.PLANTS, "gradients stay on their rank")


def texts() -> dict[str, str]:
    """By id; of different lengths."""
    return {f"q{n}": " ".join(tiny.WORDS[n : 2 * n + 3]) for n in range(collection.QUERIES)}


def documents() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return normalize(torch.randn(collection.DOCUMENTS, D, generator=generator), dim=1)


def training(model: Path, world: World) -> Training:
    """A rank's training of an encoder whose adapters are not the identity."""
    runtime = Runtime(None, world, CPU, "ddp" if world.size > 1 else "cpu", None)
    encoder = TextEncoder(ModelConfig(path=str(model)), runtime=runtime)
    learner = QueryEncoder(encoder, runtime, RANK, OptimConfig(lr=1e-3))
    tiny.fill_adapter(learner.engine.embedder)
    queries = Queries([*texts()], torch.empty(collection.QUERIES, 0), collection.setting()[2])
    share = collection.share_of(documents(), world.rank, world.size)
    made = Training(learner, texts(), Parts(queries, queries, queries, share, CPU))
    made.budget = TIGHT
    return made


def gradients(model: Path, world: World) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """The loss, and the gradient of all adapters as one vector, by plant and batch."""
    own, found = training(model, world), {}
    for plant in PLANTS:
        for name, rows in BATCHES.items():
            with patch.object(collection_loss, "TILE", 7 * D), planted(plant):
                loss = own.gradients(torch.tensor(rows)).loss
            found[plant, name] = torch.tensor(loss), as_vector(own)
    return found


def as_vector(own: Training) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in own.encoder.engine.gradients().values()]).double()


def planted(plant: str):
    if plant == "gradients stay on their rank":
        return patch.object(World, "begin_sum", lambda self, flat: SimpleNamespace(wait=lambda: None))
    return collection.planted(plant)


def plain_gradients(model: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The definition, in one process: one pass over all queries of a batch, and plain autograd."""
    own = training(model, World())
    engine, found = own.encoder.engine, {}
    for name, rows in BATCHES.items():
        engine.embedder.zero_grad()
        vectors = engine.embed(*lay(rows, own.tokens), seed=0)
        related = collection.setting()[2].of(torch.tensor(rows), collection.QUERIES)
        unit = normalize(vectors.double(), dim=1)
        loss = collection.plain(unit, documents().double(), related, TEMPERATURE)
        loss.backward()
        found[name] = loss.detach(), as_vector(own)
    return found
