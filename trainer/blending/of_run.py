"""Blends at the end of a run, on all ranks: the base as the run began with it, and the best model, from its folder.

- Every rank has a whole copy of the model, and embeds its share of the texts, as in the run's other evaluations.
- The queries that chose the best model choose the share, and the others report on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet
from trainer.blending.blend import key_of_models, result_of, say_rule, writer_of
from trainer.blending.choice import Side
from trainer.blending.measured import Measured, PerQuery
from trainer.blending.pair import Pair, open_pair
from trainer.blending.rules import Rules
from trainer.blending.shares import Tell, best_share
from trainer.blending.weights import between
from trainer.config.sections import ModelConfig
from trainer.engine.start import Runtime
from trainer.evaluation.measure import evaluate_engine
from trainer.evaluation.metric_names import METRICS
from trainer.model_folder.spec import ModelSpec
from trainer.reporting.judge import Blend
from trainer.run_dir.checkpoint_writer import WriteModel
from trainer.run_dir.layout import measured_file
from trainer.run_dir.queries import FEW, Halves


@dataclass(frozen=True)
class SetOfRun:
    """A retrieval set of the run, and how it is read."""

    source: str  # its name among the evaluation sets
    data: RetrievalSet
    halves: Halves
    spec: ModelSpec  # with the prompts of the source


@dataclass(frozen=True)
class Tuned:
    """The run's best model."""

    folder: Path
    step: int
    base: ModelConfig  # the model before training
    tokenizer: object  # for evaluation


@dataclass(frozen=True)
class Blended:
    """The outcome."""

    share: float  # the same on every rank
    best: Path  # folder of share 1
    result: dict  # blend.json; empty on other ranks than 0
    of_judge: Blend | None  # on rank 0
    write: WriteModel  # of the model of this share; for rank 0


def blend_run(
    runtime: Runtime, tuned: Tuned, sets: Sequence[SetOfRun], metric: str, output: Path, tell: Tell
) -> Blended:
    """Measures the shares, and chooses one. What is measured is kept beside the output, the folder that the model will
    be written to. Collective.

    sets: the domain, and the general set if there is one. metric: chooses the share, and bounds the loss. tell: shows a
    line, on rank 0.
    """
    world, rules = runtime.world, Rules()
    names = tuple(dict.fromkeys([*METRICS, metric]))
    sides = [Side(one.data, tuple(map(list, one.halves.sides)), {}, metric) for one in sets]
    for line in [*map(_halves_line, sets), *([] if len(sets) > 1 else [UNBOUND])]:
        tell(line)
    say_rule(sides, rules, tell)
    opened: list = []  # of rank 0: the pair, and what is measured

    def open_on_first() -> None:
        pair = _open(tuned)
        dtype = str(runtime.dtype).removeprefix("torch.") if runtime.dtype else ""
        opened[:] = pair, Measured(measured_file(output), key_of_models(pair, runtime.device.type, dtype), names)

    with _told_of_a_run():
        world.on_first(open_on_first)
        pair, measured = opened or (_open(tuned), None)
        model = between(pair, runtime.device, world, runtime.dtype)
    read_as = {id(side): one.spec for side, one in zip(sides, sets)}

    def evaluate(side: Side) -> PerQuery | None:
        return evaluate_engine(model.engine, tuned.tokenizer, read_as[id(side)], side.data, names)

    share = best_share(model, sides, rules, measured, evaluate, tell)
    model.set(share)
    write, _ = writer_of(model, pair, tuned.step)
    if world.rank:
        return Blended(share, tuned.folder, {}, None, write)
    result = result_of(pair, sides, share, rules, f"step {tuned.step} of {output.parent.name}")
    values = {one.source: side.values(share) for one, side in zip(sets, sides)}
    general = sets[1].halves.reporting if len(sets) > 1 else ()
    blend = Blend(share, values, general)
    return Blended(share, tuned.folder, result | {"sources": [*values]}, blend, write)


UNBOUND = "watch.blend: no data.general, so what the tuned model forgot is neither measured nor bounded"


@contextmanager
def _told_of_a_run() -> Iterator[None]:
    """Says of what is refused how the run can end: the reasons name what trainer.blend has as arguments."""
    try:
        yield
    except BadInput as error:
        names = "BASE is the model before training, TUNED the best one"
        mend = f"{names}; `--resume watch.blend=off` writes the best model unblended"
        told = BadInput([f"watch.blend: {problem}; {mend}" for problem in error.problems])
        told.on_every_rank = error.on_every_rank
        raise told from None


def _open(tuned: Tuned) -> Pair:
    path, code = Path(tuned.base.path), tuned.base.trust_remote_code
    base = str(path.resolve()) if path.exists() else tuned.base.path  # as an adapter names it
    models = (ModelConfig(path=path, trust_remote_code=code) for path in (base, str(tuned.folder)))
    return open_pair(*models, tell=lambda line: None, flags={})  # the run has said how it reads texts


def _halves_line(one: SetOfRun) -> str:
    name, choosing, reporting = one.data.name, *map(len, one.halves.sides)
    if one.halves.same:
        few = f"{name} has {choosing} queries, fewer than {FEW}"
        return f"watch.blend: {few}: the same ones choose the share and report on it, which flatters it"
    return f"watch.blend: {choosing} queries of {name} choose the share, {reporting} others report on it"
