"""Memory and work of a chunk's passes, as functions of its tokens. Never imports torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A size that grows with the tokens of a chunk."""

    fixed: float = 0.0
    per_token: float = 0.0

    def at(self, tokens: float) -> float:
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class Peak:
    """The largest of several sizes, each of which grows with the tokens."""

    lines: tuple[Line, ...]

    def at(self, tokens: float) -> float:
        return max(line.at(tokens) for line in self.lines)


@dataclass(frozen=True)
class Product:
    """Equal matrix products of a pass."""

    count: int
    operations: float  # floating-point operations per token, of one
    moved: Line  # bytes read and written, by one


@dataclass(frozen=True)
class Effort:
    """The work of a pass over a chunk, without attention's products."""

    products: tuple[Product, ...]
    moved: Line  # bytes that all other operations read and write
    started: int  # operations

    @property
    def operations(self) -> float:
        """Floating-point operations of matrix products per token."""
        return sum(product.count * product.operations for product in self.products)


@dataclass(frozen=True)
class Profile:
    """Memory (in bytes) and work of a chunk's forward and backward pass."""

    kept: Line  # what the forward pass leaves for the backward pass
    first: Peak  # both passes, before any gradient exists
    later: Peak  # both passes beside existing gradients, which are not counted
    forward: Effort
    backward: Effort
