"""Checks the evaluation sets and the watched metrics."""

from data_prep.common.errors import BadInput, collect
from data_prep.common.files import check
from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.config.other_trainers import about_value
from trainer.config.sections import GENERAL, TRAIN_LOSS, WatchConfig
from trainer.evaluation.metric_names import METRICS, PAIR_METRICS, check_names, name_problem, unmeasured
from trainer.evaluation.watched import general_metric, measured_names
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
    """Raises BadInput if a watched metric will not be measured; the default metric may be missing."""
    watch, metric = inputs.config.watch, inputs.config.watch.metric
    problems: list[str] = []
    collect(problems, _check_listed, inputs, key="watch.metrics")
    problems += _eval_loss_problems(inputs) if watch.eval_loss else []
    source, _, name = metric.rpartition("/")
    mend = about_value("watch.metric", name, (*METRICS, *PAIR_METRICS, TRAIN_LOSS))
    if metric != TRAIN_LOSS and (reason := name_problem(name, mend)):
        problems.append(f"watch.metric: {reason}, or {TRAIN_LOSS}")
    elif metric != TRAIN_LOSS and (watch.patience or source or watch.blend):
        problems += _unwatched(inputs, source, name)
    problems += _blend_problems(inputs, source, name) if watch.blend else []
    check(problems)


def _blend_problems(inputs: Inputs, source: str, name: str) -> list[str]:
    """Returns a line per reason why watch.blend cannot choose between the model before training and the best one. That
    the watched set is missing, or does not measure the metric, is a problem of watch.metric."""
    config, off, problems = inputs.config, "or leave out watch.blend", []
    if inputs.config.model.lora.start:
        problems.append(
            f"watch.blend: the scale of an adapter leads to the bare base, and not to model.lora.start, where training "
            f"begins; merge {config.model.lora.start} (python -m trainer.merge) and name that as model.path, {off}"
        )
    if config.watch.metric == TRAIN_LOSS:
        problems.append(
            f"watch.blend: queries choose the share, and with watch.metric={TRAIN_LOSS} none choose; watch a metric of "
            f"a retrieval set, such as nDCG@10, {off}"
        )
    elif name in PAIR_METRICS:
        problems.append(
            f"watch.blend: {name} (watch.metric) is of scored pairs and has no value for a single query, by which a "
            f"share is chosen; watch a metric of a retrieval set, such as nDCG@10, {off}"
        )
    if source == GENERAL:
        problems.append(
            f"watch.blend: watch.metric={config.watch.metric} would choose by the set that bounds the loss; watch a "
            f"metric of data.eval or of a source, {off}"
        )
    elif GENERAL in inputs.eval_paths and isinstance(_opened(inputs, GENERAL), ScoredPairs):
        problems.append(
            f"watch.blend: data.general {config.data.general} has scored pairs, which have no values of single queries "
            f"to bound the loss by; name a retrieval set, leave data.general out, {off}"
        )
    return problems


def _check_listed(inputs: Inputs) -> None:
    """Raises BadInput for names of watch.metrics that no evaluation set measures."""
    names = inputs.config.watch.metrics
    if names is None:
        return
    check_names(names, "watch.metrics")
    sets = [_opened(inputs, source) for source in inputs.eval_paths]
    if sets and None not in sets:
        check(unmeasured(sets, names, "watch.metrics"))


def _eval_loss_problems(inputs: Inputs) -> list[str]:
    """Returns a line if there are no eval rows whose loss can be measured."""
    data = inputs.config.data
    if data.eval not in (None, data.train):
        stated = "is off" if data.eval is False else "names another set"
        return [f"watch.eval_loss: is the loss on the eval split of data.train, but data.eval {stated}; leave one out"]
    if "eval" not in inputs.shards.splits:
        return ["watch.eval_loss: data.train has no eval split; shard with --eval-fraction 0.1, or leave it out"]
    if not inputs.eval_sources:
        return ["watch.eval_loss: no source of data.train has two rows in the eval split; leave it out"]
    return []


def _unwatched(inputs: Inputs, source: str, name: str) -> list[str]:
    """Returns a line if the set of a source, "" being data.eval, is missing or does not measure a metric."""
    watch, sets = inputs.config.watch, inputs.eval_paths
    if source in sets:
        measured = _measured(inputs, source)
        if measured is None or name in measured:
            return []
        other = f"{sets[source]} does not measure it, but {', '.join(measured)}"
        mend = "name a retrieval set" if watch.blend else f"name one of them, or set watch.metric={TRAIN_LOSS}"
        return [f"watch.metric: {other}; {mend}{_asking(watch)}"]
    off = "data.eval, which is off" if inputs.config.data.eval is False else ""
    missing = off or "data.eval, and the shards have no eval split, which is not there"
    of = f"the set {source!r}, which is not there" if source else missing
    mend = "name a retrieval set" if watch.blend else f"name a set, or set watch.metric={TRAIN_LOSS}"
    return [f"watch.metric: {watch.metric} needs {of}; {mend}{_asking(watch)}"]


def _opened(inputs: Inputs, source: str) -> RetrievalSet | ScoredPairs | None:
    """Returns the set of a source; None for one that cannot be read, which check_eval reports."""
    try:
        return inputs.eval_set(inputs.eval_paths[source])
    except BadInput:
        return None


def _measured(inputs: Inputs, source: str) -> list[str] | None:
    """Returns the metrics that a source's set measures; None for one that cannot be read."""
    data = _opened(inputs, source)
    return data and measured_names(data, inputs.config)


def chooses(inputs: Inputs) -> bool:
    """True if final/ will be the best of several measured models."""
    metric = inputs.config.watch.metric
    source, _, name = metric.rpartition("/")
    return metric == TRAIN_LOSS or (source in inputs.eval_paths and name in (_measured(inputs, source) or []))


def _asking(watch: WatchConfig) -> str:
    """Returns the other end of a mend: the setting that needs the metric."""
    keys = [f"watch.{key}" for key in ("patience", "blend") if getattr(watch, key)]
    return f", or leave out {' and '.join(keys)}" if keys else ""


def without_effect(inputs: Inputs) -> list[str]:
    """Returns a line per setting that changes nothing, because what it is about is not evaluated."""
    config, sets = inputs.config, inputs.eval_paths
    lines, watch = [], config.watch
    asked = {"data.ignore_identical_ids": config.data.ignore_identical_ids, "watch.metrics": watch.metrics is not None}
    asked |= {f"watch.{name}": getattr(watch, name) for name in ("every_steps", "every_minutes", "every_epochs")}
    for name in [name for name, value in asked.items() if value and not sets]:
        lines.append(f"{name} changes nothing: there is no evaluation ({inputs.no_eval})")
    source, _, name = watch.metric.rpartition("/")
    if watch.blend and GENERAL not in sets:
        lines.append("watch.blend: without data.general nothing bounds what the blend forgets, and nothing measures it")
    general = general_metric(watch).rpartition("/")[2]
    if GENERAL in sets and general not in (_measured(inputs, GENERAL) or [general]):
        lines.append(f"watch.tolerance changes nothing for data.general: it does not measure {general}")
    stated = [
        f"watch.{key}" for key in ("metric", "min_delta", "keep_last") if getattr(watch, key) != getattr(UNSTATED, key)
    ]
    if watch.metric == TRAIN_LOSS or not (stated or config.data.eval):  # the eval split is not opened for nothing
        return lines
    measured = (_measured(inputs, source) if source in sets else None) or []
    if source in sets and name in (measured or [name]):
        return lines
    if source in sets and "watch.metric" not in stated:
        chosen = f"{sets[source]} does not measure {name} (watch.metric), so final/ will be the last model"
        lines.append(f"{chosen}; set watch.metric to one of {', '.join(measured)}, or to {TRAIN_LOSS}")
    reason = f"{sets[source]} has no such metric" if source in sets else inputs.no_eval
    return lines + [f"{key} changes nothing: {watch.metric} is not measured ({reason})" for key in stated]


UNSTATED = WatchConfig()
