"""Decides at the ends of epochs: which was the best, when to stop, and what to warn of. Never imports torch.

- Over-fitting: the margin (positive similarity less negative) of the train rows grows while the watched metric falls.
- Forgetting: the metric falls on data.general. Both are warnings only.
"""

from dataclasses import dataclass, field

from trainer.config.sections import TRAIN_LOSS, WatchConfig
from trainer.evaluation.watched import general_metric


@dataclass(frozen=True)
class Verdict:
    """The decision about an epoch."""

    better: bool = False  # than all epochs before
    over: bool = False  # too many were not better in a row: the run ends
    warnings: tuple[str, ...] = ()


@dataclass
class Watch:
    """The watched metric over the epochs.

    state is part of a checkpoint. Its keys: best, best_epoch, margin (of the best epoch's train rows), waited (epochs
    since the best); before, general_before (the metric before training).
    """

    config: WatchConfig
    state: dict = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """True if the run has stopped early."""
        return self.config.patience is not None and self.state.get("waited", 0) >= self.config.patience

    @property
    def _general(self) -> str:
        """The metric watched on data.general."""
        return general_metric(self.config)

    def before(self, metrics: dict[str, float] | None) -> None:
        """Records the evaluation of the untrained model."""
        for key, name in (("before", self.config.metric), ("general_before", self._general)):
            if metrics and name in metrics:
                self.state[key] = metrics[name]

    def see(
        self, epoch: int, metrics: dict[str, float] | None, train_loss: float | None, margin: float | None
    ) -> Verdict:
        """Records an epoch and decides. margin: mean positive similarity less mean negative one of its train rows."""
        values = {**(metrics or {}), TRAIN_LOSS: train_loss}
        value, warnings = values.get(self.config.metric), []
        if value is None:
            return Verdict(over=self.over, warnings=tuple(self._forgotten(epoch, values)))
        better = self._better(value)
        if better:
            self.state |= {"best": value, "best_epoch": epoch, "margin": margin, "waited": 0}
        else:
            self.state["waited"] += 1
            warnings += self._over_fitted(epoch, value, margin)
        return Verdict(better, self.over, (*warnings, *self._forgotten(epoch, values)))

    def _better(self, value: float) -> bool:
        if "best" not in self.state:
            return True
        gain = value - self.state["best"]
        return (-gain if self.config.metric == TRAIN_LOSS else gain) > self.config.min_delta

    def _over_fitted(self, epoch: int, value: float, margin: float | None) -> list[str]:
        best_margin, best = self.state["margin"], self.state["best"]
        if self.config.metric == TRAIN_LOSS or None in (margin, best_margin) or value >= best:
            return []
        if margin - best_margin <= self.config.tolerance:
            return []
        return [
            f"over-fitting: since epoch {self.state['best_epoch']} the train rows' positive less negative similarity "
            f"went from {best_margin:.3f} to {margin:.3f}, and {self.config.metric} fell from {best:.4f} to {value:.4f}"
        ]

    def _forgotten(self, epoch: int, values: dict) -> list[str]:
        before, now = self.state.get("general_before"), values.get(self._general)
        if before is None or now is None or before - now <= self.config.tolerance:
            return []
        return [
            f"forgetting: {self._general.rpartition('/')[2]} on data.general was {before:.4f} before training and is "
            f"{now:.4f} after epoch {epoch}, a fall of more than watch.tolerance {self.config.tolerance:g}"
        ]

    def summary(self) -> dict | None:
        """The best epoch for the run's summary, or None if nothing could be watched."""
        if "best" not in self.state:
            return None
        facts = {"metric": self.config.metric, "value": self.state["best"], "epoch": self.state["best_epoch"]}
        return facts | {"before_training": self.state.get("before")}
