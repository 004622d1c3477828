"""Maps of query vectors that begin as the identity: x + f(x), normalised again."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainer.query_side.adapter import Layer

LINEAR, MLP = "linear", "mlp"
KINDS = (LINEAR, MLP)


class QueryMap(nn.Module):
    """x -> x + f(x), of length 1. f is zero before training."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, d) -> (n, d)"""
        return normalize(vectors + self.residual(vectors), dim=1)

    def residual(self, vectors: Tensor) -> Tensor:
        """Returns f, (n, d) -> (n, d)."""

    def layers(self) -> list[Layer]:
        """Returns the same map, but for the last normalising, as plain dense layers."""

    def penalty(self) -> Tensor:
        """Returns the sum of the squares of f's parameters: 0 for the identity of a linear map."""
        return sum(parameter.square().sum() for parameter in self.parameters())


class Linear(QueryMap):
    """f(x) = Wx + b"""

    def __init__(self, d: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(d, d)), nn.Parameter(torch.zeros(d))

    def residual(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight.T + self.bias

    def layers(self) -> list[Layer]:
        return [_layer(torch.eye(len(self.bias)) + self.weight, self.bias)]


class LowRank(QueryMap):
    """f(x) = UVx + b, U and V of a rank below d"""

    def __init__(self, d: int, rank: int, generator: torch.Generator):
        super().__init__()
        self.up, self.bias = nn.Parameter(torch.zeros(d, rank)), nn.Parameter(torch.zeros(d))
        self.down = nn.Parameter(torch.randn(rank, d, generator=generator) / math.sqrt(d))

    def residual(self, vectors: Tensor) -> Tensor:
        return vectors @ self.down.T @ self.up.T + self.bias

    def layers(self) -> list[Layer]:
        return [_layer(torch.eye(len(self.bias)) + self.up @ self.down, self.bias)]


class Mlp(QueryMap):
    """f(x) = U relu(Vx + a) + b, with d hidden numbers"""

    def __init__(self, d: int, generator: torch.Generator):
        super().__init__()
        self.up, self.bias = nn.Parameter(torch.zeros(d, d)), nn.Parameter(torch.zeros(d))
        self.down = nn.Parameter(torch.randn(d, d, generator=generator) / math.sqrt(d))
        self.hidden_bias = nn.Parameter(torch.zeros(d))

    def residual(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.down.T + self.hidden_bias).relu() @ self.up.T + self.bias

    def layers(self) -> list[Layer]:
        """x passes the hidden layer as relu(x) and relu(-x), whose difference it is."""
        one = torch.eye(len(self.bias))
        hidden = torch.cat([self.hidden_bias, torch.zeros(2 * len(one))])
        return [
            _layer(torch.cat([self.down, one, -one]), hidden, relu=True),
            _layer(torch.cat([self.up, one, -one], dim=1), self.bias),
        ]


def make_map(kind: str, d: int, rank: int | None = None, seed: int = 0) -> QueryMap:
    """Returns an untrained map. rank: of a linear map; None: full."""
    generator = torch.Generator().manual_seed(seed)
    if kind == MLP:
        return Mlp(d, generator)
    return Linear(d) if rank is None else LowRank(d, rank, generator)


def _layer(weight: Tensor, bias: Tensor, relu: bool = False) -> Layer:
    return Layer(weight.detach().numpy(), bias.detach().numpy(), relu)
