"""Checks that every loss can be imported and finds what it needs in the rows."""

from importlib.machinery import PathFinder
from importlib.util import find_spec

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from data_prep.shards.folder import Rows
from data_prep.shards.shared_keys import SourceRows
from trainer.config.imports import add_working_folder
from trainer.config.sections import LOSSES, NEEDS_SCORES, NEEDS_TEACHER, RunConfig
from trainer.inference.reading import as_guide
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec
from trainer.model_folder.vocabulary import check_embedded
from trainer.planner.plan import BatchPlan
from trainer.preflight.inputs import Inputs


def check_losses(inputs: Inputs) -> None:
    """Raises BadInput if rows lack the scores, teacher scores or hard negatives that the loss of their source needs."""
    config = inputs.config
    rows = inputs.shards.split("train")
    problems = [problem for source in inputs.sources for problem in _loss_problems(config, source, rows)]
    if config.watch.eval_loss and "eval" in inputs.shards.splits:  # without: preflight/evaluation.py
        rows = inputs.shards.split("eval")
        of = "eval split of data.train, for watch.eval_loss"
        problems += [text for source in inputs.eval_sources for text in _loss_problems(config, source, rows, of)]
    for key, loss in config.losses.items():
        if "infonce" not in loss.terms and loss.directions != "query_to_doc":
            problems.append(f"{key}.directions: {loss.directions} is about infonce, which is no term of this loss")
        if "infonce" not in loss.terms and loss.negatives == "own":
            problems.append(f"{key}.negatives: own is about infonce, which is no term of this loss")
    check(problems)


def _loss_problems(config: RunConfig, source: SourceRows, rows: Rows, of: str = "data.train") -> list[str]:
    loss, count = config.loss_of(source.name), len(source.rows)
    where, problems = f"{of}: source {source.name!r}", []
    scored, taught, hard = (rows.count(column, source.rows) for column in ("score", "teacher_scores", "negatives"))
    for name in loss.terms:
        if name in NEEDS_SCORES and scored < count:
            lacking = f"{count - scored} of {count} rows have no score, which loss {name} needs"
            problems.append(f"{where}: {lacking}; set loss.name to infonce, or shard rows with scores")
        if name not in NEEDS_TEACHER and not (name == "infonce" and loss.negatives == "own"):
            continue
        if name in NEEDS_TEACHER and taught < count:
            lacking = f"{count - taught} of {count} rows have no teacher_scores"
            problems.append(f"{where}: {lacking}, which loss {name} follows")
        named = f"loss {name}" if name in NEEDS_TEACHER else f"loss {name} with negatives: own"
        if not hard:
            problems.append(f"{where}: no row has hard negatives, so {named} has nothing to compare")
        elif config.data.max_hard_negatives == 0:
            of = f"{named} of source {source.name!r}"
            problems.append(f"data.max_hard_negatives: 0 leaves {of} nothing to compare")
    if scored and "infonce" in loss.terms:  # graded pairs would be trained as plain positives, the worst of them too
        problems.append(
            f"{where}: {scored} rows carry a score, and InfoNCE would take each pair for a positive; "
            "set loss.name to cosent or cosine, or keep the positive pairs only and leave their scores out"
        )
    return problems


def check_guides(config: RunConfig) -> None:
    """Raises BadInput for guides that cannot be read, or that mask the negatives of no loss."""
    problems = []
    for key, loss in config.losses.items():
        if not loss.guide:
            continue
        if "infonce" not in loss.terms:
            problems.append(f"{key}.guide: masks negatives of infonce, which is no term of this loss")
        try:
            guide = as_guide(loss.guide.model, config.model)
            check_embedded(read_spec(guide, fetch(guide.path, guide.trust_remote_code)))
        except BadInput as error:
            problems += [f"{key}.guide.model: {text.removeprefix('model.path: ')}" for text in error.problems]
    check(problems)


def check_functions(config: RunConfig) -> None:
    """Raises BadInput if the module of a user's loss does not exist. It is not imported: it may import torch."""
    add_working_folder()
    problems = []
    for key, loss in config.losses.items():
        modules = [name.partition(":")[0] for name in loss.terms if name not in LOSSES]
        missing = [f"{key}.name: there is no module {name!r} to import" for name in modules if not _module_exists(name)]
        problems += [f"{problem}; start the run in the folder that holds it" for problem in missing]
    check(problems)


def _module_exists(name: str) -> bool:
    """Finds a module like importlib.util.find_spec, without importing the packages a and a.b of a.b.c."""
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
    """Returns one line per source whose loss ignores its teacher scores."""
    lines = []
    for part in plan.parts:
        loss = config.loss_of(part.name)
        if any(term in NEEDS_TEACHER or term not in LOSSES for term in loss.terms):
            continue
        if taught := rows.count("teacher_scores", part.rows):
            ignoring = ", ".join(loss.terms)
            lines.append(f"{taught} rows of source {part.name!r} carry teacher_scores, which {ignoring} ignores")
    return lines


def idle_rows(config: RunConfig, plan: BatchPlan, rows: Rows) -> list[str]:
    """Returns one line per source with rows that train nothing: they lack the hard negatives of negatives: own."""
    lines = []
    for part in plan.parts:
        loss, count = config.loss_of(part.name), len(part.rows)
        alone = loss.negatives == "own" and [*loss.terms] == ["infonce"]
        if alone and (idle := count - rows.count("negatives", part.rows)):
            why = "have no hard negatives, so loss.negatives: own trains nothing on them"
            lines.append(f"{idle} of {count} rows of source {part.name!r} {why}")
    return lines
