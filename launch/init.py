"""python -m launch init: writes a commented run file for a model, data and hardware. Torch is imported in functions."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.common.console import result, say
from data_prep.common.errors import BadInput
from data_prep.common.files import existing_parent, whole_file
from launch.plan.choice import Choice, choose
from launch.plan.estimate import Estimate, Ranks, candidates, look
from launch.plan.hardware import Hardware
from launch.plan.plan import ranks_of
from trainer.config.imports import check_packages
from trainer.config.loading import parse_config
from trainer.config.recommended import Recommended, recommend
from trainer.config.sections import RunConfig
from trainer.config.yaml_reader import override
from trainer.distributed.engines import ONE_PROCESS
from trainer.preflight.inputs import Inputs

SAMPLED_ROWS = 512
COVERED = 0.99  # share of the texts that the lengths hold whole
STEP = 16  # lengths are multiples of it
MODES = ("full", "lora", "qlora")  # in the order in which they are tried


@dataclass(frozen=True)
class Line:
    """A key of the run file, its value, and the reason."""

    key: str
    value: object
    comment: str = ""


def init(args: argparse.Namespace) -> int:
    from trainer.diagnosis.weightless import WeightlessInputs

    check_packages()
    path = Path(args.output)
    if path.exists():
        raise BadInput(f"--output: {path} exists, and nothing is overwritten; name another file")
    if path.suffix not in (".yaml", ".yml") or not existing_parent(path).is_dir():
        raise BadInput(f"--output: {path}: a run file that can be written, and ends in .yaml")
    stated = _stated(args)
    ranks, hardware = ranks_of(args, _config(stated))
    inputs = WeightlessInputs(_config(stated))
    lines = [Line("output_dir", f"runs/{path.stem}"), *stated, *_of_data(inputs, ranks.device)]
    mode, choice = _mode([*lines, *stated], ranks, hardware)
    advice = _advice(inputs, mode, ranks.device)
    lines += [*_of_mode(mode, choice, advice), *stated]
    config = _config(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(render(lines, _head(args, path, config, ranks, choice)))
    result(str(path))
    start = f"look at it, then: {_command(path, ranks, choice.estimate)}"
    say("\n".join([choice.reason, *_before_training(inputs, advice), start]))
    return 0


def _stated(args: argparse.Namespace) -> list[Line]:
    """Returns the overrides of the command line as lines. Raises BadInput."""
    values: dict = {}
    problems = [problem for text in args.overrides if (problem := override(values, text))]
    if problems:
        raise BadInput(problems)
    lines = [Line("model.path", args.model), Line("data.train", args.data)]
    for text in args.overrides:
        key = text.partition("=")[0]
        value = values
        for part in key.split("."):
            value = value[part]
        lines.append(Line(key, value, "as the command said"))
    return lines


def _config(lines: Sequence[Line]) -> RunConfig:
    return parse_config({"output_dir": "runs/first"} | nested(lines), "init")


def nested(lines: Sequence[Line]) -> dict:
    """Returns the values as the run file nests them; a later line replaces an earlier one of the same key."""
    values: dict = {}
    for line in lines:
        node = values
        *parents, last = line.key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = line.value
    return values


def _advice(inputs: Inputs, mode: str, device: str) -> Recommended:
    return recommend(mode, inputs.shards.rows("train"), device)


def _of_data(inputs: Inputs, device: str) -> list[Line]:
    """Returns what the model and the data decide: lengths, losses, precision, batch, epochs."""
    comments = {
        "train.precision": "matrix products; weights that train stay in fp32",
        "train.batch_size": "over all ranks: every query is compared with all documents; "
        f"{inputs.shards.rows('train')} rows",
        "loss.temperature": "similarities are divided by it",
    }
    values = _advice(inputs, MODES[0], device).values
    kept = [Line(key, value, comments.get(key, "")) for key, value in values.items() if not key.startswith("optim.")]
    losses = _losses(inputs)
    return [*_lengths(inputs), *losses, *(line for line in kept if not (losses and line.key.startswith("loss.")))]


def _before_training(inputs: Inputs, advice: Recommended) -> list[str]:
    """Returns what the recipe has beside the run file, for rows that have none of it; docs/how_to/recipes.md."""
    rows, lines = inputs.shards.split("train"), []
    if advice.mining and not rows.count("negatives") and not rows.count("score"):
        flags = " ".join(["--model", inputs.config.model.path, *advice.mining])
        mine = f"python -m trainer.mine PAIRS --output mined.jsonl {flags}"
        lines.append(f"no row has hard negatives; the recipe mines them: {mine}")
    if "eval" not in inputs.shards.splits:
        lines.append("no eval split, so no verdict: python -m data_prep shard … --eval-fraction 0.1")
    return lines


def _lengths(inputs: Inputs) -> list[Line]:
    """Returns lengths that hold most of the sampled texts whole; those of pre-tokenised shards at most."""
    from trainer.model.tokenizer import load_tokenizer, tokenize

    rows, spec = inputs.shards.split("train"), inputs.spec
    every = range(0, len(rows), max(1, len(rows) // SAMPLED_ROWS))
    records = rows.take(list(every))
    tokenizer = load_tokenizer(inputs.config.model, spec.path)
    texts = {
        "query": [record.query for record in records],
        "passage": [text for record in records for text in (*record.positives, *record.negatives)],
    }
    lines = []
    for side, some in texts.items():
        ids, _ = tokenize(some, getattr(spec.rules, f"{side}_prompt"), 1 << 20, tokenizer)
        lengths = sorted(map(len, ids))
        held = lengths[min(len(lengths) - 1, int(COVERED * len(lengths)))]
        facts = inputs.shards.token_facts
        stored = getattr(facts.rules, f"{side}_max_len") if facts else held + STEP
        limit = min(getattr(spec.rules, f"{side}_max_len"), stored)
        value = min(limit, -(-held // STEP) * STEP)
        cut = sum(length > value for length in lengths) / len(lengths)
        comment = f"tokens; {COVERED:.0%} of the texts have at most {held}, {cut:.1%} are cut"
        lines.append(Line(f"model.{side}_max_len", value, comment))
    return lines


def _losses(inputs: Inputs) -> list[Line]:
    """Returns the loss that fits the rows of each source: graded pairs are no plain positives."""
    rows = inputs.shards.split("train")
    scored = {s.name for s in inputs.sources if rows.count("score", s.rows)}
    if not scored:
        return []
    comment = "graded pairs: the order of their scores"
    if len(scored) == len(inputs.sources):
        return [Line("loss.name", "cosent", comment)]
    return [Line("sources", {name: {"loss": {"name": "cosent"}} for name in sorted(scored)}, comment)]


def _mode(lines: list[Line], ranks: Ranks, hardware: Hardware) -> tuple[str, Choice]:
    """Returns the first mode that fits, and how; the last one where none does."""
    asked = next((line.value for line in lines if line.key == "model.finetune"), None)
    choice = Choice(None, "")
    for mode in (asked,) if asked else MODES:
        config = _config([*lines, Line("model.finetune", mode)])
        choice = choose(candidates(look(config, ranks), hardware))
        if choice.estimate:
            return mode, choice
    raise BadInput(f"{choice.reason}; see python -m launch plan for what would fit")


def _of_mode(mode: str, choice: Choice, advice: Recommended) -> list[Line]:
    reason = {
        "full": "all weights",
        "lora": "all weights do not fit: adapters",
        "qlora": "a whole base does not fit: adapters on four bits",
    }[mode]
    lines = [Line("model.finetune", mode, reason), Line("optim.lr", advice.lr)]
    if choice.estimate.candidate.recompute:
        lines.append(Line("train.gradient_checkpointing", True, "blocks compute again in the backward pass"))
    return lines


def _head(args: argparse.Namespace, path: Path, config: RunConfig, ranks: Ranks, choice: Choice) -> list[str]:
    where = f"{ranks.nodes} x {ranks.per_node} {args.gpu or ranks.device}"
    return [
        f"Written by `python -m launch init` for {where}. Every key: docs/reference/run_file.md",
        f"{choice.reason}.",
        f"Start: {_command(path, ranks, choice.estimate)}",
    ]


def _command(path: Path, ranks: Ranks, chosen: Estimate) -> str:
    command = f"python -m launch run --config {path} --engine {chosen.engine}"
    if chosen.engine not in ONE_PROCESS:
        command += f" --processes {ranks.per_node}"
    return command + (f" --nnodes {ranks.nodes} --master HOST --node-rank RANK" if ranks.nodes > 1 else "")


def render(lines: Sequence[Line], head: Sequence[str]) -> str:
    """Returns the YAML of a run file, each section once, each key with its comment."""
    comments = {line.key: line.comment for line in lines}
    text = [f"# {line}" for line in head]
    for section, values in nested(lines).items():
        if not isinstance(values, dict) or section == "sources":
            text += _entry("", section, values, comments.get(section, ""))
            continue
        text.append(f"{section}:")
        for key, value in values.items():
            text += _entry("  ", key, value, comments.get(f"{section}.{key}", ""))
    return "\n".join(text) + "\n"


def _entry(indent: str, key: str, value: object, comment: str) -> list[str]:
    plain = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000).rstrip().split("\n")
    plain[0] += f"  # {comment}" if comment else ""
    return [indent + line for line in plain]
