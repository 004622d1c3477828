"""Checks the evaluation sets and the watched metric."""

from data_prep.common.errors import collect, nearest
from data_prep.common.files import check
from trainer.config.sections import GENERAL, TRAIN_LOSS
from trainer.inference.metrics import METRICS
from trainer.preflight.inputs import Inputs


def check_eval(inputs: Inputs) -> None:
    """Reads the evaluation sets that the run file names. Raises BadInput with every problem."""
    config = inputs.config
    problems: list[str] = []
    if config.data.general:
        collect(problems, inputs.eval_set, config.data.general, key="data.general")
        if GENERAL in config.sources:
            problems.append(f"sources.{GENERAL}: is what data.general is called in the log; name the source otherwise")
    if config.data.eval:
        collect(problems, inputs.eval_set, config.data.eval, key="data.eval")
    for name, source in config.sources.items():
        if source.eval:
            collect(problems, inputs.eval_set, source.eval, key=f"sources.{name}.eval")
    check(problems)


def check_watch(inputs: Inputs) -> None:
    """Raises BadInput if the watched metric will not be measured; the default metric may be missing."""
    watch, metric = inputs.config.watch, inputs.config.watch.metric
    if metric == TRAIN_LOSS:
        return
    source, _, name = metric.rpartition("/")
    problems, sets = [], inputs.eval_paths
    if name not in METRICS:
        known = (*METRICS, TRAIN_LOSS)
        problems.append(f"watch.metric: {metric!r} is none of {', '.join(known)}.{nearest(name, known)}")
    elif source not in sets and (watch.patience or watch.keep_best or source):
        of = f"the set {source!r}" if source else "data.eval, and the shards have no eval split"
        problems.append(f"watch.metric: {metric} needs {of}, which is not there; name a set, or watch {TRAIN_LOSS}")
    check(problems)
