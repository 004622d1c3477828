"""The batch plan of a run file. Never imports torch."""

from collections.abc import Sequence

from data_prep.common.files import check
from data_prep.shards.shared_keys import SourceRows
from trainer.config.sections import LOSSES, LossConfig, RunConfig
from trainer.planner.plan import BatchPlan


def make_plan(config: RunConfig, sources: Sequence[SourceRows], fingerprint: str) -> BatchPlan:
    """Returns the plan of train rows; fingerprint: of their shards. Raises BadInput for a source below one batch."""
    data, train = config.data, config.train
    small = [source for source in sources if len(source.rows) < train.batch_size]
    check([_too_small(source.name, len(source.rows), len(sources), config) for source in small])
    apart = frozenset(source.name for source in sources if _in_batch(config.loss_of(source.name)))
    return BatchPlan(
        tuple(sources), train.batch_size, fingerprint, train.seed, data.last_batch, data.mixing,
        data.mixing_temperature, apart, train.steps_per_epoch, data.max_hard_negatives, data.negative_sampling,
    )  # fmt: skip


def make_eval_plan(config: RunConfig, sources: Sequence[SourceRows], fingerprint: str) -> BatchPlan:
    """Returns the batches on which the loss of eval rows is measured: those of its first epoch, at every evaluation."""
    data, train = config.data, config.train
    return BatchPlan(
        tuple(sources), train.batch_size, fingerprint, train.seed, apart=frozenset(),
        max_hard_negatives=data.max_hard_negatives, negative_sampling="first",
    )  # fmt: skip


def _too_small(name: str, rows: int, sources: int, config: RunConfig) -> str:
    mends = [f"set train.batch_size to {rows} or less"] if rows >= 2 else ["add rows"]
    mends += ["take a larger data.fraction"] if config.data.fraction < 1 else []
    if sources > 1:  # every batch is of one source
        mends.append("shard the data without this source, or with its rows in another")
    part = f" in the share of {config.data.fraction:g} (data.fraction)" if config.data.fraction < 1 else ""
    return (
        f"data.train: source {name!r} of {config.data.train} holds {rows} rows{part}, fewer than one batch "
        f"(train.batch_size {config.train.batch_size}); {' or '.join(mends)}"
    )


def _in_batch(loss: LossConfig) -> bool:
    """Tells if the loss takes documents of other rows as negatives."""
    infonce = loss.negatives != "own"
    return any(infonce if name == "infonce" else name not in LOSSES for name in loss.terms)
