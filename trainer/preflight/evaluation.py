"""Definitions of this subject."""

from data_prep.common.errors import BadInput, nearest
from data_prep.reading.retrieval_sets import load_set
from data_prep.shards.folder import open_shards
from trainer.config.sections import GENERAL, TRAIN_LOSS, RunConfig
from trainer.inference.metrics import METRICS
from trainer.preflight.collecting import _collect


def eval_paths(config: RunConfig) -> dict[str, str]:
    """Where the evaluation sets are, by source; "" is the whole run's: data.eval, or the shards' own eval split.

    Graded pairs do not say what is relevant: an eval split that holds nothing else is none.
    """
    found = {}
    if config.data.eval:
        found[""] = config.data.eval
    else:
        shards = open_shards(config.data.train)
        if "eval" in shards.splits and shards.split("eval").count("score") < shards.rows("eval"):
            found[""] = config.data.train
    if config.data.general:
        found[GENERAL] = config.data.general
    return found | {name: source.eval for name, source in config.sources.items() if source.eval}


def _check_eval(config: RunConfig) -> None:
    problems: list[str] = []
    if config.data.general:
        _collect(problems, load_set, config.data.general, key="data.general")
        if GENERAL in config.sources:
            problems.append(f"sources.{GENERAL}: is what data.general is called in the log; name the source otherwise")
    if config.data.eval:
        _collect(problems, load_set, config.data.eval, key="data.eval")
    for name, source in config.sources.items():
        if source.eval:
            _collect(problems, load_set, source.eval, key=f"sources.{name}.eval")
    if problems:
        raise BadInput(problems)


def _check_watch(config: RunConfig) -> None:
    """Whether what is watched will be measured. The default is not asked for, so it may be missing."""
    metric, asked = config.watch.metric, config.watch
    if metric == TRAIN_LOSS:
        return
    source, _, name = metric.rpartition("/")
    problems, sets = [], eval_paths(config)
    if name not in METRICS:
        known = (*METRICS, TRAIN_LOSS)
        problems.append(f"watch.metric: {metric!r} is none of {', '.join(known)}.{nearest(name, known)}")
    elif source not in sets and (asked.patience or asked.keep_best or source):
        of = f"the set {source!r}" if source else "data.eval, and the shards have no eval split"
        problems.append(f"watch.metric: {metric} needs {of}, which is not there; name a set, or watch {TRAIN_LOSS}")
    if problems:
        raise BadInput(problems)
