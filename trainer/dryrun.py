"""What a run would do, without training: the plan of steps and one batch as the model reads it."""

from trainer.config import RunConfig
from trainer.data import TrainData, seed_of
from trainer.losses import duplicate_mask
from trainer.model import load_embedder
from trainer.preflight import check_run, eval_path, make_plan

SHOWN_ROWS = 3


def show(config: RunConfig) -> None:
    """Prints to stdout; trains and writes nothing. Raises BadInput like the run itself."""
    check_run(config, resume=True)
    plan = make_plan(config)
    _, tokenizer, spec, _ = load_embedder(config.model)
    lines = [
        f"model: {spec.path} (pooling {spec.pooling}, {'normalised' if spec.normalize else 'not normalised'})",
        *spec.notes,
        f"data: {config.data.train}, {plan.rows} rows, fingerprint {plan.fingerprint[:16]}",
        f"evaluation: {eval_path(config) or 'none (no data.eval, and the shards have no eval split)'}",
        f"plan: {config.train.epochs} epoch(s) of {plan.steps_per_epoch} steps, global batch {plan.batch_size}, "
        f"last batch of {len(plan.epoch(0)[-1])}, {plan.left_out_per_epoch} row(s) left out per epoch",
    ]
    ids = plan.epoch(0)[0].tolist()
    data = TrainData(config.data, spec, tokenizer, plan)
    records = data.rows.take(ids)
    drawn = [seed_of(plan.seed, 0, i) % len(r.positives) for i, r in zip(ids, records)]
    batch = data.make_batch(ids, records, drawn, len(ids), 0)
    documents = len(batch.tokens) - batch.rows
    mask = duplicate_mask(batch.row_keys, batch.row_query, batch.doc_keys)
    masked = int(mask.sum()) - batch.rows  # a row's own positive is in the mask too, and stays the target
    lines += [
        f"first batch: {batch.rows} queries against {documents} documents each, "
        f"{masked} (query, document) pairs masked as duplicates, {batch.truncated} texts truncated",
    ]
    for row in range(min(SHOWN_ROWS, batch.rows)):
        lines += _row(batch, row, mask, tokenizer, spec)
    print("\n".join(lines))


def _row(batch, row: int, mask, tokenizer, spec) -> list[str]:
    def text(index: int, limit: int) -> str:
        ids = batch.tokens[index]
        cut = " [at the limit]" if len(ids) >= limit else ""
        return f"({len(ids)} tokens{cut}) {tokenizer.decode(ids)}"

    hidden = [i for i in mask[row].nonzero().flatten().tolist() if i != row]
    return [
        f"row {batch.row_ids[row]}",
        f"  query    {text(row, spec.query_max_len)}",
        f"  positive {text(batch.rows + row, spec.passage_max_len)}",
        f"  masked documents {hidden or 'none'}",
    ]
