"""What a run would do, without training: the plan of steps and one batch as the model reads it."""

from trainer.config.sections import RunConfig
from trainer.distributed.device import pick_device
from trainer.loss.batch import Batch
from trainer.loss.masks import duplicate_mask
from trainer.loss.user_functions import import_functions
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.dense import shape_of
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec
from trainer.planner.from_config import make_plan
from trainer.planner.plan import total_steps
from trainer.preflight import check_run
from trainer.preflight.evaluation import eval_paths
from trainer.train.data import TrainData

SHOWN_ROWS = 3


def show(config: RunConfig, resume: bool) -> None:
    """Prints to stdout; trains and writes nothing. Raises BadInput like the run itself."""
    pick_device(config.train.device)
    warnings = check_run(config, resume)
    import_functions(config.losses.values())
    plan = make_plan(config)
    folder = fetch(config.model.path, config.model.trust_remote_code)
    spec, tokenizer = read_spec(config.model, folder), load_tokenizer(config.model, folder)
    steps = total_steps(plan, config.train.epochs, config.train.max_steps)
    source, first = plan.batch(0)
    dense = f"dense {shape_of(spec.dense)}, " if spec.dense else ""
    lines = [
        f"model: {spec.path} (pooling {spec.pooling}, {dense}{'normalised' if spec.normalize else 'not normalised'})",
        f"prompts: query {spec.rules.query_prompt!r}, passage {spec.rules.passage_prompt!r}; "
        f"at most {spec.rules.query_max_len} and {spec.rules.passage_max_len} tokens",
        *spec.notes,
        *warnings,
        f"data: {config.data.train}, {plan.rows} rows, fingerprint {plan.fingerprint[:16]}",
        f"evaluation: {', '.join(eval_paths(config).values()) or 'none (no data.eval, no eval split with judgements)'}",
        f"plan: {steps} steps ({config.train.epochs} epoch(s) of {plan.epoch_steps}), global batch "
        f"{plan.batch_size}, last batch of {', '.join(map(str, plan.last_batches))}, "
        f"{plan.left_out_per_epoch} row(s) left out per pass, "
        f"{plan.meeting(0)} row(s) that share a text or document with an earlier one of their batch, "
        f"{round(config.optim.warmup_ratio * steps)} steps of warm-up",
        plan.describe_sources(),
    ]
    data = TrainData(config.data, spec, tokenizer, plan)
    ids = first.tolist()
    records = data.rows.take(ids)
    batch = data.make_batch(ids, records, data.draw(0, ids, records), len(ids), seed=0, source=source)
    keys = batch.documents
    mask = duplicate_mask(batch.row_keys, batch.row_query, keys.text, keys.document_id, keys.query)
    mask[range(batch.rows), range(batch.rows)] = False  # a row's own positive is its target
    loss = config.loss_of(source)
    if not loss.mask_duplicates or "infonce" not in loss.terms:
        mask[:] = False
    lines.append(
        f"first batch: {batch.rows} queries of {source!r} against {len(batch.tokens) - batch.rows} documents each, "
        f"{int(mask.sum())} (query, document) pairs masked as duplicates, {batch.truncated} texts truncated"
    )
    negatives = iter(range(2 * batch.rows, len(batch.tokens)))
    for row, record in enumerate(records):
        own = [next(negatives) for _ in record.negatives[: config.data.max_hard_negatives]]
        if row < SHOWN_ROWS:
            lines += _row(batch, row, own, mask[row].nonzero().flatten().tolist(), tokenizer)
    print("\n".join(lines))


def _row(batch: Batch, row: int, negatives: list[int], masked: list[int], tokenizer) -> list[str]:
    def text(name: str, index: int) -> str:
        ids = batch.tokens[index]
        return f"  {name:13} ({len(ids)} tokens) {tokenizer.decode(ids)}"

    return [
        f"row {batch.row_ids[row]}",
        text("query", row),
        text("positive", batch.rows + row),
        *(text("hard negative", i) for i in negatives),
        f"  masked        documents {masked or 'none'} of this batch",
    ]
