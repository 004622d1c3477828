"""Embeddings of a guide model, whose similarities mask false negatives."""

from typing import NamedTuple

from torch import Tensor


class GuideVectors(NamedTuple):
    """Embeddings of the texts that a loss compares, by a model that is not trained (GISTEmbed, Solatorio 2024,
    arXiv:2402.16829). Their inner products are cosines: every vector has length 1."""

    queries: Tensor  # (m, g), as the loss has its queries
    documents: Tensor  # (n, g)
    margin: float = 0.0  # see GuideConfig
    relative_margin: float | None = None

    def limit(self, positive: Tensor) -> Tensor:
        """Returns the cosine above which a candidate counts as a false negative; the same shape as `positive`, the
        guide's cosines of the positive pairs."""
        limit = positive - self.margin
        if self.relative_margin is None:
            return limit
        return limit.minimum(positive - self.relative_margin * positive.abs())
