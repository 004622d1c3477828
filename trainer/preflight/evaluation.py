"""Checks the evaluation sets and the watched metric."""

from data_prep.common.errors import collect
from data_prep.common.files import check
from trainer.config.other_trainers import about_value
from trainer.config.sections import GENERAL, TRAIN_LOSS, WatchConfig
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
        mend = about_value("watch.metric", name, known)
        problems.append(f"watch.metric: {metric!r} is none of {', '.join(known)}.{mend}")
    elif source not in sets and (watch.patience or watch.keep_best or source):
        off = "data.eval, which is off" if inputs.config.data.eval is False else ""
        missing = off or "data.eval, and the shards have no eval split, which is not there"
        of = f"the set {source!r}, which is not there" if source else missing
        problems.append(f"watch.metric: {metric} needs {of}; {_MEND}{_asking(watch)}")
    check(problems)


_MEND = f"name a set, or set watch.metric={TRAIN_LOSS}"


def _asking(watch: WatchConfig) -> str:
    """Returns the other end of a mend: the settings that need the metric."""
    asking = [f"watch.{name}" for name in ("patience", "keep_best") if getattr(watch, name)]
    return f", or leave out {' and '.join(asking)}" if asking else ""


def without_effect(inputs: Inputs) -> list[str]:
    """Returns a line per setting that changes nothing, because what it is about is not evaluated."""
    config, sets = inputs.config, inputs.eval_paths
    lines, watch = [], config.watch
    if config.data.ignore_identical_ids and not sets:
        lines.append(f"data.ignore_identical_ids changes nothing: there is no evaluation ({inputs.no_eval})")
    if watch.metric == TRAIN_LOSS or watch.metric.rpartition("/")[0] in sets:
        return lines
    stated = [f"watch.{name}" for name in ("metric", "min_delta") if getattr(watch, name) != getattr(UNSTATED, name)]
    return lines + [f"{name} changes nothing: {watch.metric} is not measured ({inputs.no_eval})" for name in stated]


UNSTATED = WatchConfig()
