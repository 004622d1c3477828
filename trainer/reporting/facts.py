"""What a report tells of a run, as plain values: log, data, and the model before and after on held-out queries."""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import load_set
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig, RunConfig
from trainer.inference.evaluation import compare
from trainer.preflight.evaluation import eval_paths
from trainer.reporting.comparison import Comparison, _add_queries, _add_similarities, _Side
from trainer.run_dir.layout import model_of_run
from trainer.run_dir.log import read_events


@dataclass
class Facts:
    """missing: lines that say what could not be shown, and why."""

    run: Path
    record: dict
    config: RunConfig
    events: dict[str, list[dict]]
    manifest: dict
    comparison: Comparison | None = None
    missing: list[str] = field(default_factory=list)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of the steps that logged one."""
        return [(event["step"], event[key]) for event in self.events["step"] if event.get(key) is not None]


def read_facts(
    run: Path, baseline: str | None, data: str | None, device: str, trust_remote_code: bool = False
) -> Facts:
    """baseline, data: in place of the run's own model before training and evaluation set, where they were moved.
    trust_remote_code: the models' own code may run; who asks for the page says so, not the run, which may be another's.

    Raises BadInput where there is no run, or what was named by a flag is not there.
    """
    if not (run / "run.json").is_file():
        raise BadInput(f"{run}: no run (it has no run.json); name a run's output_dir")
    record = read_object(run / "run.json")
    config = parse_config(record["config"], str(run / "run.json"))
    events: dict[str, list[dict]] = {"step": [], "evaluation": [], "epoch": [], "start": [], "end": []}
    logged, unread = read_events(run)
    for event in logged:
        events.setdefault(event["event"], []).append(event)
    if not events["step"]:
        raise BadInput(f"{run}: {unread[0] if unread else 'has made no step yet'}")
    facts = Facts(run, record, config, events, read_object(Path(config.data.train) / "manifest.json"))
    facts.missing += unread
    if not facts.manifest:
        facts.missing.append(f"data: {config.data.train} is not here, so only what the run recorded of it is shown")
    try:
        facts.comparison = _compare(facts, baseline, data, device, trust_remote_code)
    except BadInput as error:
        if baseline or data:
            raise
        facts.missing += [f"before and after: {problem}" for problem in error.problems]
    for line in facts.missing:
        say(f"left out: {line}")
    return facts


def _compare(facts: Facts, baseline: str | None, data: str | None, device: str, trust_remote_code: bool) -> Comparison:
    tuned = model_of_run(facts.run)
    place = data or eval_paths(facts.config).get("")
    if place is None:
        raise BadInput("the run has no evaluation set; --data SET names one")
    held_out = load_set(place)
    if facts.config.model.lora.start:
        facts.missing.append(f"{facts.config.model.lora.start}, where training began: before is its base")
    lengths = {key: getattr(facts.config.model, key) for key in ("query_max_len", "passage_max_len")}
    code = {"trust_remote_code": trust_remote_code}
    before = facts.config.model.model_dump() | {"path": baseline or facts.config.model.path} | WHOLE | code
    models = {"base": ModelConfig(**before), "tuned": ModelConfig(path=str(tuned), **lengths, **code)}
    sides = {side: _Side(config, held_out, device) for side, config in models.items()}
    base, after = (side.per_query for side in sides.values())
    made = Comparison(held_out.name, len(after), len(held_out.doc_ids), compare(base, after))
    _add_similarities(made, sides, held_out)
    _add_queries(made, sides, held_out)
    return made


# The model before training, read as the run read it, without the adapter that was trained.
WHOLE = {"finetune": "full", "lora": {}, "quantization_bits": None, "freeze": {}}
