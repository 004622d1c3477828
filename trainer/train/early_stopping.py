"""Decides at evaluations: which model was the best, when to stop, and what to warn of. Never imports torch.

- The best model: the watched metric on the choosing queries (run_dir/queries.py) was highest.
- Over-fitting: the margin (positive similarity less negative) of the train rows grows while the watched metric falls.
- Forgetting: the metric falls on data.general. Both are warnings only.
"""

from dataclasses import dataclass, field

from trainer.config.sections import TRAIN_LOSS, WatchConfig
from trainer.evaluation.watched import general_metric


@dataclass(frozen=True)
class Measured:
    """One evaluation."""

    metrics: dict[str, float] | None = None  # means over all queries, those of single sets as `set/metric`
    deciding: float | None = None  # the watched metric over the choosing queries; None: the one over all queries


@dataclass(frozen=True)
class Decision:
    """The decision about an epoch."""

    better: bool = False  # than all epochs before, by more than min_delta
    over: bool = False  # too many were not better in a row: the run ends
    best: bool = False  # it is the best model so far, and may be the one for final/
    warnings: tuple[str, ...] = ()


@dataclass
class Watch:
    """The watched metric over the evaluations.

    state is part of a checkpoint. Its keys: best, best_epoch, margin (of the best epoch's train rows), waited (epochs
    since the best), by which the run stops early; before, general_before (the metric before training). And of the
    choice of final/: chooses (True since the evaluation before training), before_deciding, evaluated (step of the last
    evaluation), chosen: step, epoch, deciding, value (over all queries) and kept (its weights are in best-step-N/).
    """

    config: WatchConfig
    state: dict = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """True if the run has stopped early."""
        return self.config.patience is not None and self.state.get("waited", 0) >= self.config.patience

    @property
    def chooses(self) -> bool:
        """True if final/ will be the best model. Runs that an earlier version began end with their last one."""
        return self.state.get("chooses", False)

    @property
    def chosen(self) -> dict | None:
        """The best model so far, see state."""
        return self.state.get("chosen")

    @property
    def _general(self) -> str:
        """The metric watched on data.general."""
        return general_metric(self.config)

    def before(self, measured: Measured) -> None:
        """Records the evaluation of the untrained model."""
        self.state |= {"chooses": True, "evaluated": 0}
        for key, name in (("before", self.config.metric), ("general_before", self._general)):
            if measured.metrics and name in measured.metrics:
                self.state[key] = measured.metrics[name]
        if "before" in self.state:
            self.state["before_deciding"] = self._deciding(measured, None)

    def see(
        self, epoch: int, step: int, measured: Measured, train_loss: float | None, margin: float | None
    ) -> Decision:
        """Records an epoch and decides. margin: mean positive similarity less mean negative one of its train rows."""
        self.state["evaluated"] = step
        value, forgotten = self._deciding(measured, train_loss), self._forgotten(epoch, measured)
        if value is None:
            return Decision(over=self.over, warnings=tuple(forgotten))
        best, warnings = self.measure(epoch, step, measured, train_loss), []
        better = "best" not in self.state or self._gain(value, self.state["best"]) > self.config.min_delta
        if better:
            self.state |= {"best": value, "best_epoch": epoch, "margin": margin, "waited": 0}
        else:
            self.state["waited"] += 1
            warnings += self._over_fitted(epoch, value, margin)
        return Decision(better, self.over, best, (*warnings, *forgotten))

    def measure(self, epoch: int, step: int, measured: Measured, train_loss: float | None = None) -> bool:
        """Records an evaluation, also one within an epoch. Returns True if this is the best model so far,
        and not below the one before training: it may be the one for final/."""
        self.state["evaluated"] = step
        deciding = self._deciding(measured, train_loss)
        if deciding is None or not self.chooses:
            return False
        if self.chosen and not self._gain(deciding, self.chosen["deciding"]) > 0:
            return False
        value = (measured.metrics or {}).get(self.config.metric, train_loss)
        self.state["chosen"] = {"step": step, "epoch": epoch, "deciding": deciding, "value": value, "kept": False}
        before = self.state.get("before_deciding")
        return before is None or self._gain(deciding, before) >= 0

    def lacks(self, step: int) -> bool:
        """True if the run was stopped after a step before it was evaluated."""
        return self.state.get("evaluated", step) < step

    def kept(self) -> None:
        """Records that the best model's weights are written."""
        if self.chosen:
            self.state["chosen"] = self.chosen | {"kept": True}

    def _deciding(self, measured: Measured, train_loss: float | None) -> float | None:
        if self.config.metric == TRAIN_LOSS:
            return train_loss
        if measured.deciding is not None:
            return measured.deciding
        return (measured.metrics or {}).get(self.config.metric)

    def _gain(self, value: float, other: float) -> float:
        return other - value if self.config.metric == TRAIN_LOSS else value - other

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

    def _forgotten(self, epoch: int, measured: Measured) -> list[str]:
        before, now = self.state.get("general_before"), (measured.metrics or {}).get(self._general)
        if before is None or now is None or before - now <= self.config.tolerance:
            return []
        return [
            f"forgetting: {self._general.rpartition('/')[2]} on data.general was {before:.4f} before training and is "
            f"{now:.4f} after epoch {epoch}, a fall of more than watch.tolerance {self.config.tolerance:g}"
        ]

    def summary(self) -> dict | None:
        """The best model for the run's summary, its metric over all queries; None if nothing could be watched."""
        before, chosen = self.state.get("before"), self.chosen
        if chosen:
            facts = {"value": chosen["value"], "epoch": chosen["epoch"], "step": chosen["step"]}
        elif "best" in self.state:
            facts = {"value": self.state["best"], "epoch": self.state["best_epoch"]}
        else:
            return None
        return {"metric": self.config.metric, **facts, "before_training": before}
