"""Names of the metrics that a run measures and logs. No torch."""

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.sections import GENERAL, TRAIN_LOSS, RunConfig, WatchConfig
from trainer.evaluation.metric_names import METRICS, PAIR_METRICS, measured_on
from trainer.run_dir.queries import watched


def watched_names(config: RunConfig) -> tuple[str, ...]:
    """Returns the metrics of watch.metrics, or the defaults of rankings and of scored pairs, and the watched one."""
    watch = config.watch
    names = [*METRICS, *PAIR_METRICS] if watch.metrics is None else [*watch.metrics]
    return tuple(dict.fromkeys([*names, watched(watch.metric)[1]]))


def general_metric(watch: WatchConfig) -> str:
    """Returns the metric watched on data.general: no set has a train_loss, so the default metric replaces it."""
    return f"{GENERAL}/{watched(watch.metric)[1]}"


def measured_names(data: RetrievalSet | ScoredPairs, config: RunConfig) -> list[str]:
    """Returns the metrics that a run measures on a set."""
    names = watched_names(config)
    return [name for part in data.parts for name in measured_on(part, names)]


def no_values(data: RetrievalSet | ScoredPairs, config: RunConfig) -> str:
    """Returns the reason that a watched set has no value of the watched metric for each of its queries."""
    metric, measured = watched(config.watch.metric)[1], measured_names(data, config)
    if config.watch.metric == TRAIN_LOSS or metric in measured:
        return f"{data.name} has scored pairs, and their metrics have no values of single queries"
    return f"{data.name} does not measure {metric} (watch.metric), but {', '.join(measured)}"
