"""Everything that can be known to be wrong before a process group or a model exists. Never imports torch."""

import os
import shutil
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.gate import Gate
from data_prep.model_folder import TextRules, read_json
from data_prep.output import existing_parent
from data_prep.problems import BadInput, nearest
from data_prep.retrieval_sets import load_set
from data_prep.shards import Rows, ShardFolder, open_shards
from data_prep.sharing import SourceRows
from data_prep.token_lengths import Reader
from data_prep.tokens import tokenizer_hash
from trainer.config import LOSSES, NEEDS_SCORES, NEEDS_TEACHER, LossConfig, RunConfig, add_working_folder
from trainer.folder import ModelSpec, fetch, fp32_bytes, hidden_size, read_spec
from trainer.modes import check_modes
from trainer.planner import BatchPlan
from trainer.retrieval import METRICS
from trainer.runlog import check_resumable
from trainer.state import MADE_AHEAD
from trainer.trackers import check_tracking
from trainer.watch import GENERAL, TRAIN_LOSS


def check_run(config: RunConfig, resume: bool, own_loss: bool = False, engine: str | None = None) -> list[str]:
    """Raises one BadInput with every problem of model, data and output folder; returns a line for each warning.

    own_loss: a function takes the place of the run file's losses. engine: where it is known already.
    """
    problems: list[str] = []
    _collect(problems, check_modes, config, engine)
    spec = _collect(problems, check_model, config)
    fingerprint = _collect(problems, _check_data, config, key="data.train")
    if spec and fingerprint:
        _collect(problems, _check_tokens, config, spec, key="data.train")
    if not own_loss:
        _collect(problems, _check_functions, config)
        if fingerprint:
            _collect(problems, _check_losses, config)
    _collect(problems, _check_eval, config)
    if fingerprint:
        _collect(problems, _check_watch, config)
    _collect(problems, check_tracking)
    _collect(problems, _check_output, config, resume, fingerprint, spec)
    if problems:
        raise BadInput(problems)
    return _pass_gate(config)  # last: it reads the data, and needs the model's tokenizer and the evaluation sets


def _pass_gate(config: RunConfig) -> list[str]:
    """What the gate (data_prep/gate.py) found, one line each; BadInput for what data.allow does not list."""
    spec = read_spec(config.model, fetch(config.model.path, config.model.trust_remote_code))
    rules = TextRules(spec.query_prompt, spec.passage_prompt, spec.query_max_len, spec.passage_max_len)
    evals = {"data.eval": config.data.eval, "data.general": config.data.general}
    evals |= {f"sources.{name}.eval": own.eval for name, own in config.sources.items()}
    proportional = "data.mixing: round_robin or temperature takes them more often"
    gate = Gate(
        open_shards(config.data.train),
        {key: path for key, path in evals.items() if path},
        Reader(spec.path, rules),
        proportional if config.data.mixing == "proportional" else None,
    )
    found = gate.findings()
    refused = [one for one in found if one.severity == "error" and one.name not in config.data.allow]
    if refused:
        raise BadInput(
            [f"{one.about or 'data.train'}: {one.line()}; or train on them: data.allow=[{one.name}]" for one in refused]
        )
    return [f"{one.severity if one.severity == 'warning' else 'allowed'}: {one.line()}" for one in found]


def _collect(problems: list[str], check: Callable, *args, key: str = ""):
    """The check's result; its problems are collected, each under the key of the run file that it is about."""
    try:
        return check(*args)
    except BadInput as error:
        problems += [text if text.startswith(key) else f"{key}: {text}" for text in error.problems]
        return None


def check_model(config: RunConfig) -> ModelSpec:
    folder = fetch(config.model.path, config.model.trust_remote_code)
    spec = read_spec(config.model, folder)
    if spec.is_adapter:
        raise BadInput(
            f"model.path: {folder} is an adapter; to go on training it, set model.path to its base {spec.base} and "
            "model.lora.start to this folder; to train all weights, merge it first (python -m trainer.merge)"
        )
    settings = read_json(Path(folder) / "config.json")
    size = spec.dense[-1].outputs if spec.dense else hidden_size(settings)
    for key, loss in config.losses.items():
        largest = loss.dims[0][0]
        if size and largest and largest > size:
            raise BadInput(f"{key}.matryoshka: {largest}, but the embeddings of {folder} have {size} dimensions")
    for file in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model.path: {file} is damaged ({error})") from None
    return spec


def make_plan(config: RunConfig) -> BatchPlan:
    """The plan of the train split. Raises BadInput where a source holds fewer rows than one batch."""
    return _plan_of(config, open_shards(config.data.train))


def _plan_of(config: RunConfig, shards: ShardFolder) -> BatchPlan:
    data, batch_size = config.data, config.train.batch_size
    sources = tuple(shards.train_sources())
    small = [source for source in sources if len(source.rows) < batch_size]
    if small:
        raise BadInput([_too_small(source.name, len(source.rows), len(sources), config) for source in small])
    apart = frozenset(source.name for source in sources if _in_batch(config.loss_of(source.name)))
    mixing = {"mixing": data.mixing, "mixing_temperature": data.mixing_temperature, "apart": apart}
    mixing["cut"] = config.train.steps_per_epoch
    return BatchPlan(sources, batch_size, shards.fingerprint, config.train.seed, data.last_batch, **mixing)


def _too_small(name: str, rows: int, sources: int, config: RunConfig) -> str:
    mends = [f"set train.batch_size to {rows} or less"] if rows >= 2 else ["add rows"]
    if sources > 1:  # every batch is of one source
        mends.append("shard the data without this source, or with its rows in another")
    return (
        f"data.train: source {name!r} of {config.data.train} holds {rows} rows, fewer than one batch "
        f"(train.batch_size {config.train.batch_size}); {' or '.join(mends)}"
    )


def _in_batch(loss: LossConfig) -> bool:
    """Whether a row's loss may take another row's documents for negatives."""
    return any(name == "infonce" or name not in LOSSES for name in loss.terms)


def _check_data(config: RunConfig) -> str:
    shards = open_shards(config.data.train)
    shards.split("train")
    names = [source.name for source in shards.train_sources()]
    unknown = [name for name in config.sources if name not in names]
    if unknown:
        has = f"{config.data.train} has no such source, but {', '.join(names)}"
        raise BadInput([f"data.train: sources.{name}: {has}.{nearest(name, names)}" for name in unknown])
    return _plan_of(config, shards).fingerprint


def _check_tokens(config: RunConfig, spec: ModelSpec) -> None:
    """Whether tokens that shards hold are those that this run would make."""
    made = open_shards(config.data.train).token_facts
    if made is None:
        return
    found = []
    if tokenizer_hash(Path(spec.path)) != made.sha256:
        found.append(f"the tokenizer of {made.model} (the run's is another one, that of {spec.path})")
    for name in ("query_prompt", "passage_prompt"):
        if getattr(made, name) != getattr(spec, name):
            found.append(f"{name} {getattr(made, name)!r} (the run's is {getattr(spec, name)!r})")
    for name in ("query_max_len", "passage_max_len"):
        if getattr(made, name) < getattr(spec, name):  # a shorter one is served by cutting again
            found.append(f"{name} {getattr(made, name)} (the run's is longer: {getattr(spec, name)})")
    if found:
        mend = "shard again with the run's (--tokenizer), or without tokens, or change the run file"
        raise BadInput(f"data.train: {config.data.train} holds tokens made with {', '.join(found)}; {mend}")


def _check_losses(config: RunConfig) -> None:
    """Whether the rows of every source carry what its loss is made of."""
    shards = open_shards(config.data.train)
    rows, problems = shards.split("train"), []
    for source in shards.train_sources():
        problems += _loss_problems(config, source, rows)
    for key, loss in config.losses.items():
        if "infonce" not in loss.terms and loss.directions != "query_to_doc":
            problems.append(f"{key}.directions: {loss.directions} is about infonce, which is no term of this loss")
    if problems:
        raise BadInput(problems)


def _loss_problems(config: RunConfig, source: SourceRows, rows: Rows) -> list[str]:
    loss, count = config.loss_of(source.name), len(source.rows)
    where, found = f"data.train: source {source.name!r}", []
    scored, taught, hard = (rows.count(column, source.rows) for column in ("score", "teacher_scores", "negatives"))
    for name in loss.terms:
        if name in NEEDS_SCORES and scored < count:
            found.append(f"{where}: {count - scored} of {count} rows have no score, of which loss {name} is made")
        if name in NEEDS_TEACHER and taught < count:
            found.append(f"{where}: {count - taught} of {count} rows have no teacher_scores, which loss {name} follows")
        if name in NEEDS_TEACHER and not hard:
            found.append(f"{where}: no row has hard negatives, so loss {name} has nothing to compare")
        elif name in NEEDS_TEACHER and config.data.max_hard_negatives == 0:
            found.append(f"data.max_hard_negatives: 0 leaves loss {name} of source {source.name!r} nothing to compare")
    if scored and "infonce" in loss.terms:  # graded pairs would be trained as plain positives, the worst of them too
        found.append(
            f"{where}: {scored} rows carry a score, and InfoNCE would take each pair for a positive; "
            "set loss.name to cosent or cosine, or keep the positive pairs only and leave their scores out"
        )
    return found


def _check_functions(config: RunConfig) -> None:
    """Whether the modules of users' losses exist; they are not imported, as they may import torch."""
    add_working_folder()
    problems = []
    for key, loss in config.losses.items():
        modules = [name.partition(":")[0] for name in loss.terms if name not in LOSSES]
        problems += [
            f"{key}.name: there is no module {module!r} to import; start the run in the folder that holds it"
            for module in modules
            if not _module_exists(module)
        ]
    if problems:
        raise BadInput(problems)


def _module_exists(name: str) -> bool:
    """As importlib.util.find_spec, which would import the packages that a.b.c lies in."""
    first, *rest = name.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return False
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return False
        spec = PathFinder.find_spec(".".join([first, *rest[: depth + 1]]), spec.submodule_search_locations)
    return spec is not None


def unused_teachers(config: RunConfig, plan: BatchPlan, rows: Rows) -> list[str]:
    """A line for each source whose teacher scores its loss does not use."""
    lines = []
    for part in plan.parts:
        loss = config.loss_of(part.name)
        if any(term in NEEDS_TEACHER or term not in LOSSES for term in loss.terms):
            continue
        taught = rows.count("teacher_scores", part.rows)
        if taught:
            lines.append(
                f"{taught} rows of source {part.name!r} carry teacher_scores, which {', '.join(loss.terms)} ignores"
            )
    return lines


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


def _check_output(config: RunConfig, resume: bool, fingerprint: str | None, spec: ModelSpec | None) -> None:
    out = Path(config.output_dir)
    check_place(out, resume)
    if fingerprint and (out / "run.json").is_file():
        check_resumable(out, config, fingerprint)
    if spec:
        _check_space(config, out, resume, Path(spec.base))


def check_place(out: Path, resume: bool) -> None:
    """Whether a run may begin, or with resume go on, in this folder. Raises BadInput."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"output_dir: {out} is a file")
    if (out / "run.json").is_file():
        if not resume:
            raise BadInput(
                f"output_dir: {out} holds a run already; add --resume to go on with it, or name another folder"
            )
    elif out.is_dir() and any(path.name not in MADE_AHEAD for path in out.iterdir()):
        raise BadInput(f"output_dir: {out} is not empty and holds no run of ours; name a new folder")
    _check_writable(out)


def _check_writable(out: Path) -> None:
    parent = existing_parent(out)
    if not parent.is_dir():
        raise BadInput(f"output_dir: {parent} is a file, so {out} cannot be made below it")
    probe = parent / f".embedfleet-probe-{os.getpid()}"  # os.access says yes to root on a read-only mount
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"output_dir: cannot write below {parent} ({error.strerror}); name another folder") from None


def _check_space(config: RunConfig, out: Path, resume: bool, model: Path) -> None:
    """model: the folder of the weights, which for a hub id is not model.path."""
    # adapters are small beside what they are trained on
    weights = fp32_bytes(model) if config.model.finetune == "full" else 0
    there = len(list(out.glob("checkpoint-*"))) if resume else 0
    asked = config.checkpoint
    epochs = min(config.train.epochs, asked.keep_epochs + 1 if asked.keep_epochs else config.train.epochs)
    between = (asked.keep_steps or 1) + 1 if asked.every_steps or asked.every_minutes else 0
    checkpoints = max(0, epochs + between - there)
    # a checkpoint holds the weights and two moments, final the weights
    needed = weights * (3 * checkpoints + (0 if (out / "final").is_dir() else 1) + config.watch.keep_best)
    free = shutil.disk_usage(existing_parent(out)).free
    if free < needed:
        raise BadInput(
            f"output_dir: {free / 2**30:.1f} GiB free below {out}, but {checkpoints} checkpoints and the final model "
            f"need about {needed / 2**30:.1f} GiB; free some, name another disk, or set checkpoint.keep_epochs"
        )
