"""The learned temperature of a loss."""

import math


class LearnedTemperature:
    """A loss's temperature as a trained number: Adam on its logarithm (Radford et al. 2021, arXiv:2103.00020, 2.5).
    Not a parameter of the model: every rank knows its whole gradient, so it is the same on every engine."""

    LEAST = 1e-3

    def __init__(self, value: float, lr: float, state: dict | None = None):
        self.lr = lr
        self.value, self.mean, self.square, self.updates = value, 0.0, 0.0, 0
        if state:
            self.value, self.mean, self.square, self.updates = (state[key] for key in self.state())

    def update(self, gradient: float, factor: float) -> None:
        """Makes one Adam step. gradient: d(loss)/d(temperature). factor: schedule's factor of the learning rate."""
        slope = gradient * self.value  # d(loss)/d(log temperature)
        self.updates += 1
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope * slope
        mean, square = self.mean / (1 - 0.9**self.updates), self.square / (1 - 0.999**self.updates)
        self.value *= math.exp(-self.lr * factor * mean / (math.sqrt(square) + 1e-8))
        self.value = max(self.LEAST, self.value)

    def state(self) -> dict:
        return {"value": self.value, "mean": self.mean, "square": self.square, "updates": self.updates}
