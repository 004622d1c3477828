"""Dry run, without training: the plan of steps and one batch as the model reads it."""

from trainer.config.recipe import recipe
from trainer.config.sections import TRAIN_LOSS, RunConfig
from trainer.distributed.device import choose_kernels, pick_device, precision_notes
from trainer.loss.masks import duplicate_mask
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.dense import shape_of
from trainer.model_folder.spec import describe_lengths
from trainer.planner.plan import total_steps
from trainer.preflight.inputs import Inputs
from trainer.run_dir.queries import watched
from trainer.run_dir.record import Begun, as_begun, recorded
from trainer.train.data import TrainData
from trainer.train.setup import halves_of_run
from trainer.train.train import check

SHOWN_ROWS = 3


def show(config: RunConfig, resume: bool) -> None:
    """Prints to stdout; trains and writes nothing. Raises BadInput like the run itself."""
    device = pick_device(config.train.device)
    choose_kernels(device, config.train.precision)
    config = as_begun(config, recorded(config.output_dir) if resume else Begun())
    inputs = Inputs(config)
    warnings = check(inputs, resume) + precision_notes(config.train.precision, device)
    print("\n".join([*_run_lines(inputs, warnings), *_batch_lines(inputs)]))


def _run_lines(inputs: Inputs, warnings: list[str]) -> list[str]:
    config, spec, plan = inputs.config, inputs.spec, inputs.plan
    steps = total_steps(plan, config.train.epochs, config.train.max_steps)
    dense = f"dense {shape_of(spec.dense)}, " if spec.dense else ""
    eval_paths = ", ".join(inputs.eval_paths.values())
    return [
        f"model: {spec.path} (pooling {spec.pooling}, {dense}{'normalised' if spec.normalize else 'not normalised'})",
        f"prompts: query {spec.rules.query_prompt!r}, passage {spec.rules.passage_prompt!r}; "
        f"at most {spec.rules.query_max_len} and {spec.rules.passage_max_len} tokens"
        + ("" if spec.pool_prompt else "; the prompt's tokens are not pooled"),
        *(f"  {line}" for line in spec.own_prompts.lines(spec.rules)),
        *recipe(config),
        *spec.notes,
        *warnings,
        f"data: {config.data.train}, {plan.rows} rows, fingerprint {plan.fingerprint[:16]}",
        f"evaluation: {eval_paths or f'none ({inputs.no_eval})'}",
        *inputs.eval_notes,
        *_choosing(inputs),
        f"plan: {steps} steps ({config.train.epochs} epoch(s) of {plan.epoch_steps}), global batch "
        f"{plan.batch_size}, shortest batch of {', '.join(map(str, plan.last_batches))}, "
        f"{plan.left_out_per_epoch} row(s) left out per pass, "
        f"{plan.meeting(0)} row(s) that share a text or document with an earlier one of their batch, "
        f"{round(config.optim.warmup_ratio * steps)} steps of warm-up",
        plan.describe_sources(),
    ]


def _choosing(inputs: Inputs) -> list[str]:
    """Returns the line of the run itself about the queries that choose the best model."""
    metric, halves = inputs.config.watch.metric, halves_of_run(inputs)
    return [halves.note(inputs.eval_sets[watched(metric)[0]].name)] if halves and metric != TRAIN_LOSS else []


def _batch_lines(inputs: Inputs) -> list[str]:
    config, plan = inputs.config, inputs.plan
    tokenizer = load_tokenizer(config.model, inputs.spec.path)
    data = TrainData(config.data, inputs.spec, tokenizer, plan, inputs.shards)
    batch = data.batch(0, 0, 1)
    keys = batch.documents
    mask = duplicate_mask(batch.row_keys, batch.row_query, keys.text, keys.document_id, keys.query)
    mask[range(batch.rows), range(batch.rows)] = False  # a row's own positive is its target
    loss = config.loss_of(batch.source)
    if not loss.mask_duplicates or "infonce" not in loss.terms:
        mask[:] = False
    documents = f"{len(batch.tokens) - batch.rows} documents each"
    if loss.negatives == "own":
        mask[keys.row != keys.row.new_tensor(range(batch.rows))[:, None]] = False
        documents = "their row's own documents"
    lines = [
        f"first batch: {batch.rows} queries of {batch.source!r} against {documents}, "
        f"{int(mask.sum())} (query, document) pairs masked as duplicates, {batch.truncated} texts truncated"
        + (f": {describe_lengths(config.model, inputs.spec.rules)}" if batch.truncated else "")
    ]
    negatives = iter(range(2 * batch.rows, len(batch.tokens)))
    for row, record in enumerate(data.rows.take(batch.row_ids[:SHOWN_ROWS])):
        own = [next(negatives) for _ in plan.negatives(0, batch.row_ids[row], len(record.negatives))]
        texts = [("query", row), ("positive", batch.rows + row), *(("hard negative", i) for i in own)]
        tokens = [(name, batch.tokens[i]) for name, i in texts]
        masked = mask[row].nonzero().flatten().tolist()
        lines.append(f"row {batch.row_ids[row]}")
        lines += [f"  {name:13} ({len(text)} tokens) {tokenizer.decode(text)}" for name, text in tokens]
        lines.append(f"  masked        documents {masked or 'none'} of this batch")
    return lines
