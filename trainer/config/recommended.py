"""The recommended recipe: a function of what trains, the number of pairs, and the device. No torch.

docs/how_to/recipes.md says which of the numbers were measured, and on what. `python -m launch init` writes them.
"""

from dataclasses import dataclass

from trainer.config.sections import LEARNING_RATES, LossConfig

STEPS = 50  # optimizer steps that a pass over the pairs should have at least, where the batch is not the smallest
SMALLEST, LARGEST = 16, 1024  # rows of a batch
FEW_PAIRS, EPOCHS = 10_000, 3  # fewer pairs are passed so often, others once
NEGATIVES, RELATIVE_MARGIN = 2, 0.05  # mined for a row that has none; none above 95 % of the positive's score


@dataclass(frozen=True)
class Recommended:
    """Numbers for a run file, and for mining before it."""

    batch_size: int
    lr: float
    epochs: int
    precision: str = "fp32"  # of matrix products; weights that train stay in fp32
    temperature: float = LossConfig().temperature
    negatives: int = NEGATIVES
    relative_margin: float = RELATIVE_MARGIN

    @property
    def values(self) -> dict[str, int | float | str]:
        """Key of the run file -> value."""
        return {
            "train.batch_size": self.batch_size,
            "train.epochs": self.epochs,
            "train.precision": self.precision,
            "optim.lr": self.lr,
            "loss.temperature": self.temperature,
        }

    @property
    def mining(self) -> list[str]:
        """Flags of `trainer.mine` beside the model; empty: nothing is mined."""
        return ["--k", str(self.negatives), "--relative-margin", str(self.relative_margin)] if self.negatives else []


def recommend(finetune: str, pairs: int, device: str = "cpu") -> Recommended:
    """Returns the recipe. finetune: of the run file. pairs: train rows. device: cpu, mps or cuda."""
    return Recommended(
        batch_size=batch_size(pairs),
        lr=LEARNING_RATES[finetune],
        epochs=1 if pairs >= FEW_PAIRS else EPOCHS,
        precision="bf16" if device == "cuda" else "fp32",
    )


def batch_size(pairs: int) -> int:
    """Returns the largest power of two with enough steps in a pass, within its bounds, and at most the pairs."""
    size = SMALLEST
    while 2 * size * STEPS <= pairs and 2 * size <= LARGEST:
        size *= 2
    while size > max(2, pairs):
        size //= 2
    return size
