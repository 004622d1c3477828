"""The loss of a Python run that names none: by the scores of its pairs, source by source. No torch."""

from trainer.config.sections import COSINE_OF_PAIRS, LossConfig, RunConfig, SourceConfig
from trainer.preflight.inputs import Inputs


def with_loss_by_scores(config: RunConfig) -> tuple[RunConfig, str]:
    """Returns the run with the cosine loss for sources that have scores and InfoNCE for the others, and a line about
    the choice. A source whose loss the run file states keeps it. Raises BadInput for shards that cannot be opened."""
    inputs = Inputs(config)
    rows = inputs.shards.split("train")
    open_choice = [source for source in inputs.sources if not (own := config.sources.get(source.name)) or not own.loss]
    counts = {source.name: (rows.count("score", source.rows), len(source.rows)) for source in open_choice}
    scored = {name: count for name, count in counts.items() if count[0]}
    if counts and len(scored) == len(counts):
        loss = config.loss.model_copy(update={"name": COSINE_OF_PAIRS})
        return config.model_copy(update={"loss": loss}), _line(scored, [])
    cosine = LossConfig(name=COSINE_OF_PAIRS)
    sources = {name: config.sources.get(name, SourceConfig()).model_copy(update={"loss": cosine}) for name in scored}
    others = [name for name in counts if name not in scored]
    return config.model_copy(update={"sources": config.sources | sources}), _line(scored, others)


def _line(scored: dict[str, tuple[int, int]], others: list[str]) -> str:
    parts = [
        f"(cosine - score)² for {name!r}, where {have:,} of {rows:,} pairs have a score"
        for name, (have, rows) in scored.items()
    ]
    if others:
        parts.append(f"InfoNCE over the batch for {', '.join(map(repr, others))}, whose pairs have no score")
    return f"loss_fn=None: {'; '.join(parts)}"
