"""Definitions of this subject."""

from data_prep.common.errors import BadInput
from data_prep.shards.folder import ShardFolder, open_shards
from trainer.config.sections import LOSSES, LossConfig, RunConfig
from trainer.planner.plan import BatchPlan


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
