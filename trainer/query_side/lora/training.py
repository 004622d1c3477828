"""LoRA on the query encoder against a frozen collection.

- Gradients flow through the encoder of the queries alone. The documents are the vectors of the store.
- A step is the trainer's own (trainer/train/step.py). Each rank embeds its slice of the batch of queries, and scores
  the whole batch against its share of the documents. Gradients are summed over ranks once.
- After each epoch the encoder is measured on the queries that choose. The untrained one is measured too, wins a tie,
  and the best one stays.
"""

from dataclasses import dataclass

from torch import Tensor

from trainer.config.sections import OptimConfig
from trainer.engine.optimizer import lr_factor
from trainer.engine.start import Runtime
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.fit import TEMPERATURE, Parts, batches, measured
from trainer.query_side.lora.objective import CollectionObjective, query_batch
from trainer.query_side.lora.query_encoder import QueryEncoder
from trainer.train.step import StepStats, compute_gradients
from trainer.train.token_budget import resolve_budget

LORA = "lora"
EPOCHS = 4
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.0)  # linear schedule, see lr_factor


@dataclass(frozen=True)
class Point:
    """The encoder after some epochs, and its mean fit.METRIC over the queries that choose."""

    epochs: int  # 0: the model itself
    state: dict[str, Tensor]
    score: float


class Training:
    """A query encoder and the queries that it learns from."""

    def __init__(self, encoder: QueryEncoder, texts: dict[str, str], parts: Parts):
        """texts: by the id of a query."""
        self.encoder, self.parts = encoder, parts
        self.tokens = encoder.tokens([texts[query] for query in parts.training.ids])
        self.budget = resolve_budget("auto", encoder.engine, encoder.spec)

    def gradients(self, rows: Tensor) -> StepStats:
        """Leaves the gradient of the mean loss of some queries on the engine's parameters. Collective."""
        engine, parts = self.encoder.engine, self.parts
        world, skipped = engine.world, self.encoder.skipped_tokens
        first, last = (len(rows) * rank // world.size for rank in (world.rank, world.rank + 1))
        own = [self.tokens[row] for row in rows[first:last].tolist()]
        prompts = None if skipped is None else [skipped] * len(own)
        related = parts.training.related.of(rows, len(self.tokens))
        objective = CollectionObjective(parts.documents, related, TEMPERATURE, parts.device)
        return compute_gradients(engine, query_batch(own, prompts, len(rows)), objective, self.budget)


def train_encoder(
    encoder: TextEncoder, runtime: Runtime, rank: int | None, texts: dict[str, str], parts: Parts
) -> tuple[QueryEncoder, list[Point]]:
    """Returns the best encoder, and the measured points, best first. Collective; the same on every rank.

    texts: by the id of a query.
    """
    learner, world, choosing = QueryEncoder(encoder, runtime, rank, OPTIM), runtime.world, parts.choosing
    training, count = Training(learner, texts, parts), len(parts.training.ids)
    total, steps = EPOCHS * len(batches(count, 0, 0)), 0
    points = [Point(0, learner.state(), measured(world, choosing.vectors, choosing, parts.documents, parts.device))]
    for epoch in range(1, EPOCHS + 1):
        for rows in batches(count, 0, steps):
            training.gradients(rows)
            learner.engine.apply(OPTIM.lr * lr_factor(steps, total, OPTIM))
            steps += 1
        vectors = learner.vectors([texts[query] for query in choosing.ids])
        points.append(Point(epoch, learner.state(), measured(world, vectors, choosing, parts.documents, parts.device)))
    points.sort(key=lambda point: -point.score)  # stable: of equal ones the fewest epochs
    learner.load(points[0].state)
    return learner, points
