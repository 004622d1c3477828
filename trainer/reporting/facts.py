"""The facts of a report as plain values: log, data, and the comparison on held-out queries."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.console import say
from data_prep.common.errors import BadInput, KnownError
from data_prep.reading.retrieval_sets import RetrievalSet, load_set
from data_prep.remote.copies import MANIFEST, local
from data_prep.texts.tokenizer_rules import read_object
from trainer.config.loading import parse_config
from trainer.config.sections import ModelConfig, RunConfig
from trainer.inference.reading import read_alike
from trainer.preflight.inputs import Inputs
from trainer.reporting.comparison import Adapted, Comparison, compare_models
from trainer.run_dir.layout import model_of_run
from trainer.run_dir.log import LOG, read_events
from trainer.run_dir.vectors import read_vectors
from trainer.run_dir.verdict import BLENDED, read_verdict


@dataclass
class Facts:
    """The content of a report."""

    run: Path
    record: dict  # run.json
    config: RunConfig
    events: dict[str, list[dict]]  # of logs.jsonl, by kind
    manifest: dict  # of data.train; empty if that is not here
    verdict: dict = field(default_factory=dict)  # verdict.json; empty before the end, and of earlier versions
    comparison: Comparison | None = None
    missing: list[str] = field(default_factory=list)  # lines: what cannot be shown, and why

    def series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of the steps that logged one."""
        return [(event["step"], event[key]) for event in self.events["step"] if event.get(key) is not None]


def read_facts(
    run: Path,
    baseline: str | None,
    data: str | None,
    device: str,
    trust_remote_code: bool = False,
    adapted: Adapted | None = None,
) -> Facts:
    """Reads the run's files and compares its model before and after training.

    baseline, data: replace the run's own model before training and evaluation set, if they were moved.
    adapted: a query adapter of the trained model; its queries pass it.
    trust_remote_code: runs the models' own code; the reader of the page decides, not the run, which may be another's.
    Raises BadInput if there is no run, or nothing at a path that a flag named.
    """
    if not (run / "run.json").is_file():
        hint = f"; did you mean {run.parent}?" if (run.parent / "run.json").is_file() else ""
        raise BadInput(f"{run}: no run (it has no run.json); name a run's output_dir{hint}")
    record = read_object(run / "run.json")
    config = parse_config(record["config"], str(run / "run.json"))
    events: dict[str, list[dict]] = defaultdict(list)
    unread: list[str] = []
    for event in read_events(run / LOG, problems=unread):
        events[event["event"]].append(event)
    if not events["step"]:
        raise BadInput(f"{run}: {unread[0] if unread else 'has made no step yet'}")
    facts = Facts(run, record, config, events, _manifest(config.data.train))
    facts.verdict = read_verdict(run)
    facts.missing += unread
    if not facts.manifest:
        facts.missing.append(f"data: {config.data.train} is not here, so only what the run recorded of it is shown")
    try:
        facts.comparison = _compare(facts, baseline, data, device, trust_remote_code, adapted)
    except BadInput as error:
        if baseline or data or adapted:
            raise
        facts.missing += [f"before and after: {problem}" for problem in error.problems]
    for line in facts.missing:
        say(f"left out: {line}")
    return facts


def _manifest(train: str) -> dict:
    """Returns the manifest of data.train; empty if the folder, or its store, is not here."""
    try:
        return read_object(local(train) / MANIFEST)
    except KnownError:
        return {}


def _compare(
    facts: Facts, baseline: str | None, data: str | None, device: str, trust_remote_code: bool, adapted: Adapted | None
) -> Comparison:
    tuned, inputs, model = model_of_run(facts.run), Inputs(facts.config), facts.config.model
    path = data or inputs.eval_paths.get("")
    if path is None:
        raise BadInput("the run has no evaluation set; --data SET names one")
    rule = facts.config.data.ignore_identical_ids
    held_out = load_set(path, ignore_identical_ids=rule) if data else inputs.eval_set(path)
    if not isinstance(held_out, RetrievalSet):
        mend = "trainer.evaluate --baseline compares models on them"
        raise BadInput(f"{path} holds scored pairs, which have no ranking to show; {mend}")
    for note in held_out.notes:
        say(note)
    kept = {"base": None, "tuned": None}
    if not data and not baseline:
        kept["base"] = read_vectors(facts.run, 0, held_out)
    in_final = facts.verdict.get("final", {"model": BLENDED})  # a run keeps no vectors of a blend
    if not data and not adapted and tuned.name == "final" and in_final["model"] != BLENDED:
        kept["tuned"] = read_vectors(facts.run, in_final["step"], held_out)
    if model.lora.start and kept["base"] is None:
        facts.missing.append(f"{model.lora.start}, where training began: before is its base")
    paths = str(tuned), baseline or model.path
    models = [ModelConfig(path=path, trust_remote_code=trust_remote_code) for path in paths]
    after, before = read_alike(*models, began=True)
    return compare_models(before, after, held_out, device, kept, adapted)
