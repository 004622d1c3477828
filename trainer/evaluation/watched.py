"""Names of the metrics that a run measures and logs. No torch."""

from trainer.config.sections import GENERAL, TRAIN_LOSS, RunConfig, WatchConfig
from trainer.evaluation.metric_names import METRICS, PAIR_METRICS


def watched_names(config: RunConfig) -> tuple[str, ...]:
    """Returns the metrics of watch.metrics, or the defaults of rankings and of scored pairs, and the watched one."""
    watch = config.watch
    names = [*METRICS, *PAIR_METRICS] if watch.metrics is None else [*watch.metrics]
    if watch.metric != TRAIN_LOSS:
        names.append(watch.metric.rpartition("/")[2])
    elif config.data.general:
        names.append(general_metric(watch).rpartition("/")[2])
    return tuple(dict.fromkeys(names))


def general_metric(watch: WatchConfig) -> str:
    """Returns the metric watched on data.general: no set has a train_loss, so the default metric replaces it."""
    metric = WatchConfig().metric if watch.metric == TRAIN_LOSS else watch.metric
    return f"{GENERAL}/{metric.rpartition('/')[2]}"
