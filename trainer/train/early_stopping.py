"""The ends of epochs, one after the other: which was the best, when to stop, and signs of over-fitting and forgetting.

Signs are lines of warning, never more: `positive similarity less negative` of the train rows grows while the watched
metric falls (the rows are learnt by heart), or the metric falls on data.general (what the model could do is lost).
Never imports torch.
"""

from dataclasses import dataclass, field

from trainer.config.sections import GENERAL, TRAIN_LOSS, WatchConfig


@dataclass(frozen=True)
class Verdict:
    """Of the epoch that ended. better: than all before it; over: so many were not that the run ends."""

    better: bool = False
    over: bool = False
    warnings: tuple[str, ...] = ()


@dataclass
class Watch:
    """state is part of a checkpoint's. best, best_epoch, margin (of its train rows) and waited (epochs since): where an
    epoch has ended. before, general_before: the metric before training."""

    config: WatchConfig
    state: dict = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether the run has stopped early."""
        return self.config.patience is not None and self.state.get("waited", 0) >= self.config.patience

    @property
    def _general(self) -> str:
        """What is watched on data.general: of no set is there a train_loss, so the default metric is in its place."""
        metric = WatchConfig().metric if self.config.metric == TRAIN_LOSS else self.config.metric
        return f"{GENERAL}/{metric.rpartition('/')[2]}"

    def before(self, metrics: dict[str, float] | None) -> None:
        """Takes the evaluation of the untrained model."""
        for key, name in (("before", self.config.metric), ("general_before", self._general)):
            if metrics and name in metrics:
                self.state[key] = metrics[name]

    def see(self, epoch: int, metrics: dict[str, float] | None, train_loss: float | None, margin: float | None):
        """The verdict on an epoch. margin: mean positive similarity less negative of its train rows."""
        found = {**(metrics or {}), TRAIN_LOSS: train_loss}
        value, warnings = found.get(self.config.metric), []
        if value is None:
            return Verdict(over=self.over, warnings=tuple(self._forgotten(epoch, found)))
        better = self._better(value)
        if better:
            self.state |= {"best": value, "best_epoch": epoch, "margin": margin, "waited": 0}
        else:
            self.state["waited"] += 1
            warnings += self._by_heart(epoch, value, margin)
        return Verdict(better, self.over, (*warnings, *self._forgotten(epoch, found)))

    def _better(self, value: float) -> bool:
        if "best" not in self.state:
            return True
        gain = value - self.state["best"]
        return (-gain if self.config.metric == TRAIN_LOSS else gain) > self.config.min_delta

    def _by_heart(self, epoch: int, value: float, margin: float | None) -> list[str]:
        began, best = self.state["margin"], self.state["best"]
        if self.config.metric == TRAIN_LOSS or None in (margin, began):
            return []
        if value >= best or margin - began <= self.config.tolerance:
            return []
        return [
            f"over-fitting: since epoch {self.state['best_epoch']} the train rows' positive less negative similarity "
            f"went from {began:.3f} to {margin:.3f}, and {self.config.metric} fell from {best:.4f} to {value:.4f}"
        ]

    def _forgotten(self, epoch: int, found: dict) -> list[str]:
        before, now = self.state.get("general_before"), found.get(self._general)
        if before is None or now is None or before - now <= self.config.tolerance:
            return []
        return [
            f"forgetting: {self._general.rpartition('/')[2]} on data.general was {before:.4f} before training and is "
            f"{now:.4f} after epoch {epoch}, a fall of more than watch.tolerance {self.config.tolerance:g}"
        ]

    def summary(self) -> dict | None:
        """What the run's summary says of the best epoch; None where nothing could be watched."""
        if "best" not in self.state:
            return None
        facts = {"metric": self.config.metric, "value": self.state["best"], "epoch": self.state["best_epoch"]}
        return facts | {"before_training": self.state.get("before")}
