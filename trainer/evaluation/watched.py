"""Names of the metrics that a run measures and logs. No torch."""

from trainer.config.sections import GENERAL, RunConfig, WatchConfig
from trainer.evaluation.metric_names import METRICS, PAIR_METRICS
from trainer.run_dir.queries import watched


def watched_names(config: RunConfig) -> tuple[str, ...]:
    """Returns the metrics of watch.metrics, or the defaults of rankings and of scored pairs, and the watched one."""
    watch = config.watch
    names = [*METRICS, *PAIR_METRICS] if watch.metrics is None else [*watch.metrics]
    return tuple(dict.fromkeys([*names, watched(watch.metric)[1]]))


def general_metric(watch: WatchConfig) -> str:
    """Returns the metric watched on data.general: no set has a train_loss, so the default metric replaces it."""
    return f"{GENERAL}/{watched(watch.metric)[1]}"
