"""The model card of an export: how to load it, and the data, settings and measured metrics of the run's own files."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.texts.tokenizer_rules import is_hub_id, read_object
from trainer.evaluation.metric_names import metrics_of
from trainer.inference.probe import read_probe
from trainer.model_folder.dense import shape_of
from trainer.model_folder.files import TRAINING_CONFIG
from trainer.model_folder.older_versions import least_version
from trainer.model_folder.spec import ModelSpec
from trainer.run_dir.layout import read_state
from trainer.run_dir.log import LOG, read_events
from trainer.run_dir.record import versions
from trainer.run_dir.verdict import BLEND, BLENDED, describe, read_verdict

SETTINGS = (  # keys of the run file in the card; paths of this machine stay out
    "model.finetune", "model.quantization_bits", "loss.name", "loss.temperature", "train.batch_size", "train.epochs",
    "train.max_steps", "train.precision", "train.seed", "optim.name", "optim.lr", "optim.weight_decay", "optim.ema",
)  # fmt: skip


@dataclass(frozen=True)
class Story:
    """The record of a run's files about one of its model folders."""

    config: dict
    fingerprint: str | None  # of the train data
    step: int | None  # optimizer steps that made the model
    before: dict[str, float]  # mean metrics on the run's evaluation set before training; empty if it has none
    after: dict[str, float]  # and of this model
    unread: tuple[str, ...] = ()  # a line each: what is not known
    verdict: tuple[str, ...] = ()  # a line each: of the run, if this is its final/


def story_of(folder: Path) -> Story:
    """Reads the story of final/, best/ or a checkpoint; of the folder alone if its run directory is gone."""
    config, run = read_object(folder / TRAINING_CONFIG), read_object(folder.parent / "run.json")
    facts = read_verdict(folder)
    verdict = tuple(describe(facts)) if facts else ()
    if not run:
        return Story(config, None, read_probe(folder).step, {}, {}, (), verdict)
    unread: list[str] = []
    events = list(read_events(folder.parent / LOG, problems=unread))
    step = _step_of(folder, events)
    if step is None:
        unread.append("which step this model is of was not recorded")
    by_step: dict[int, dict[str, float]] = {}
    for event in events:  # a set of judgements and scored pairs logs two at one step
        if event["event"] == "evaluation" and not event.get("source"):
            by_step.setdefault(event["step"], {}).update(metrics_of(event))
    after = by_step.get(step, {})
    if facts.get("final", {}).get("model") == BLENDED:
        after = _of_blend(read_object(folder / BLEND))
        unread += [] if after else ["metrics of this blend on the run's own evaluation set, which had no part in it"]
    elif after and (folder / "state").is_dir() and config.get("optim", {}).get("ema"):
        after = {}
        unread.append("metrics of these weights: their average was evaluated, which final/ and best/ hold (optim.ema)")
    return Story(config, run.get("data_fingerprint"), step, by_step.get(0, {}), after, tuple(unread), verdict)


def _of_blend(facts: dict) -> dict[str, float]:
    """Returns the mean metrics of the share that a run chose, on data.eval; empty if it chose by another set."""
    rows = {row["share"]: row["domain"]["all"] for row in facts["shares"]}
    return rows[facts["chosen"]] if facts["sources"][0] == "" else {}


def _step_of(folder: Path, events: list[dict]) -> int | None:
    """Returns the step that a model folder records; in folders of earlier versions that of best/ is unknown."""
    recorded = read_probe(folder).step
    if recorded is not None:
        return recorded
    if (folder / "state").is_dir():
        return read_state(folder).step
    return max((e["step"] for e in events if e["event"] == "step"), default=None) if folder.name == "final" else None


def model_card(folder: Path, spec: ModelSpec, is_adapter: bool, onnx: bool) -> str:
    """Returns the text of README.md. folder: final/ or a checkpoint."""
    story = story_of(folder)
    base = story.config.get("model", {}).get("path")
    if base is not None and not is_hub_id(base):
        base = Path(base).name  # the rest of the path belongs to this machine
    run = Path(story.config["output_dir"]).name if "output_dir" in story.config else folder.name
    title = f"# {run}\n\nA text-embedding model for retrieval, fine-tuned with embedfleet.\n"
    parts = [_head(base), title, _use(spec, is_adapter, onnx), _model(spec, base, is_adapter)]
    return "\n".join([*parts, _training(story), _measured(story), _made()])


def _head(base: str | None) -> str:
    lines = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += [f"base_model: {base}"] if base and is_hub_id(base) and "/" in base else []
    lines += ["tags:", "- sentence-transformers", "- sentence-similarity", "- feature-extraction", "- embedfleet"]
    return "\n".join(["---", *lines, "---", ""])


def _use(spec: ModelSpec, is_adapter: bool, onnx: bool) -> str:
    lines = [
        "## Use",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("THIS_FOLDER_OR_ID"{", trust_remote_code=True" if spec.own_code else ""})',
        'queries = model.encode_query(["what to look for"])',
        'documents = model.encode_document(["what to look in"])',
        "scores = model.similarity(queries, documents)",
        "```",
        "",
    ]
    rules = spec.rules
    if rules.query_prompt or rules.passage_prompt:
        lines += [
            f"Queries are read with the prompt {rules.query_prompt!r}, documents with {rules.passage_prompt!r}. What "
            "knows no prompts (plain transformers, LangChain's HuggingFaceEmbeddings by default) must put them before "
            "each text; text-embeddings-inference takes `prompt_name`.",
            "",
        ]
    if spec.named_prompts:
        names = ", ".join(f"`{name}`" for name in spec.named_prompts)
        lines += [f"Further prompts, by `prompt_name` of `encode`: {names}.", ""]
    if is_adapter:
        lines += ["This is an adapter: sentence-transformers loads it with its base; embedding servers do not.", ""]
    if spec.own_code:
        where = "beside its base" if is_adapter else "`*.py`"
        lines += [f"The model is defined by code of its own ({where}): read it before you let it run.", ""]
    if onnx:
        lines += ["`onnx/model.onnx` gives last_hidden_state; what stands behind it is as below.", ""]
    return "\n".join(lines)


def _model(spec: ModelSpec, base: str | None, is_adapter: bool) -> str:
    rows = {
        "base model": base or "not known",
        "kind": "adapter" if is_adapter else "whole model",
        "pooling": spec.pooling if spec.pool_prompt else f"{spec.pooling}, without the tokens of the prompt",
        **({"dense layers behind it": shape_of(spec.dense)} if spec.dense else {}),
        "normalised": "yes, compare by cosine" if spec.normalize else "no, compare by inner product",
        "maximum length": f"{spec.rules.max_len} tokens",
        "query prompt": f"`{spec.rules.query_prompt}`" if spec.rules.query_prompt else "none",
        "document prompt": f"`{spec.rules.passage_prompt}`" if spec.rules.passage_prompt else "none",
    }
    rows["least version"] = _least_version(spec)
    if spec.bidirectional is not None:
        rows["attention"] = "both directions" if spec.bidirectional else "causal"
    return f"## Model\n\n{_table(('', ''), rows.items())}"


def _least_version(spec: ModelSpec) -> str:
    least = least_version(read_object(Path(spec.base) / "config.json"), spec.bidirectional)
    if least:
        return f"transformers {least}, sentence-transformers 5.0"
    unlike = ", and version 4 reads this model's attention as causal" if spec.bidirectional else ""
    return f"transformers {versions()['transformers']}, sentence-transformers 5.0: older ones were not tried{unlike}"


def _training(story: Story) -> str:
    rows = {}
    if data := story.config.get("data", {}).get("train"):
        names = data if isinstance(data, list) else [data]
        rows["data"] = ", ".join(Path(str(name)).name for name in names)
    if story.fingerprint:
        rows["data fingerprint"] = f"`{story.fingerprint}`"
    if story.step is not None:
        rows["optimizer steps"] = story.step
    for key in SETTINGS:
        section, _, name = key.partition(".")
        value = story.config.get(section, {}).get(name)
        if value not in (None, ""):
            rows[key] = f"`{json.dumps(value) if isinstance(value, dict) else value}`"
    if not rows:
        return "## Training\n\nThe run's files did not lie beside the model when it was exported.\n"
    return f"## Training\n\n{_table(('', ''), rows.items())}"


def _measured(story: Story) -> str:
    lines = "".join(f"* {line[:1].upper()}{line[1:]}.\n" for line in story.verdict)
    return _metrics_table(story) + (f"\n## Verdict\n\n{lines}" if lines else "")


def _metrics_table(story: Story) -> str:
    if not story.after:
        unknown = f"Not known: {'; '.join(story.unread)}." if story.unread else ""
        return f"## Metrics\n\n{unknown or 'None were measured on this model during its training.'}\n"
    rows = [
        (name, f"{story.before[name]:.4f}" if name in story.before else "", f"{value:.4f}")
        for name, value in story.after.items()
    ]
    table = _table(("metric", "before", "after"), rows)
    return f"## Metrics\n\nOn the evaluation set of the run, held out from its training data.\n\n{table}"


def _made() -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("torch", "transformers"))
    return f"Exported with {used}; before it was finished, a fresh process loaded it and embedded as the trainer did.\n"


def _table(head: tuple[str, ...], rows: Iterable[Sequence]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def card_of(name: str, text: str, base: str, spec: ModelSpec, is_adapter: bool, sections: Sequence[str]) -> str:
    """Returns the text of README.md for a model that no run made. text: a line on what it is. base: folder or hub id.
    sections: how it was made and measured."""
    title = f"# {name}\n\nA text-embedding model for retrieval, made with embedfleet. {text}\n"
    parts = [_head(base), title, _use(spec, is_adapter, False), _model(spec, base, is_adapter), *sections]
    return "\n".join([*parts, _made()])
