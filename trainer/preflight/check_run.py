"""All checks of a run before a process group or a model exists. Never imports torch."""

from functools import partial

from data_prep.common.errors import collect
from data_prep.common.files import check
from data_prep.quality.gate import Gate
from data_prep.texts.token_lengths import Reader
from trainer.config.compatibility import check_modes
from trainer.config.recipe import unusual
from trainer.planner.plan import total_steps
from trainer.preflight.data import check_data, check_tokens
from trainer.preflight.evaluation import check_eval, check_watch, chooses, without_effect
from trainer.preflight.inputs import Inputs
from trainer.preflight.losses import check_functions, check_guides, check_losses
from trainer.preflight.model import check_model
from trainer.preflight.output import check_output
from trainer.preflight.prompts import check_prompts
from trainer.run_dir.trackers import check_tracking


def check_run(inputs: Inputs, resume: bool, own_loss: bool = False, engine: str | None = None) -> list[str]:
    """Raises one BadInput with every problem of model, data and output folder; returns one line per warning.

    own_loss: a function replaces the run file's losses. engine: if it is known. Afterwards all `inputs` can be used.
    """
    config = inputs.config
    problems: list[str] = []
    collect(problems, check_modes, config, engine)
    spec = collect(problems, check_model, inputs)
    plan = collect(problems, check_data, inputs, key="data.train")
    lacking = None
    if spec and plan:
        collect(problems, check_tokens, inputs, key="data.train")
        lacking = collect(problems, check_prompts, inputs)
    if not own_loss:
        collect(problems, check_functions, config)
        collect(problems, check_guides, config)
        if plan:
            collect(problems, check_losses, inputs)
    collect(problems, check_eval, inputs)
    if plan:
        collect(problems, check_watch, inputs)
    collect(problems, check_tracking)
    best = partial(chooses, inputs) if plan else None
    collect(problems, check_output, config, resume, plan and plan.fingerprint, spec, best)
    check(problems)
    # The gate comes last: it reads the data, and needs the model's tokenizer and the evaluation sets.
    steps = total_steps(plan, config.train.epochs, config.train.max_steps)
    return [*unusual(config, spec.normalize, steps), *lacking, *_pass_gate(inputs), *without_effect(inputs)]


def _pass_gate(inputs: Inputs) -> list[str]:
    """Returns one line per finding of the gate; raises BadInput for errors that data.allow does not list."""
    config, spec = inputs.config, inputs.spec
    evals = {"data.eval": config.data.eval, "data.general": config.data.general}
    evals |= {f"sources.{name}.eval": source.eval for name, source in config.sources.items()}
    proportional = "data.mixing: round_robin or temperature takes them more often"
    gate = Gate(
        inputs.shards,
        {key: path for key, path in evals.items() if path},
        Reader(spec.path, spec.rules, spec.own_prompts),
        proportional if config.data.mixing == "proportional" else None,
        {path: inputs.eval_set(path) for path in evals.values() if path},
    )
    findings = gate.findings()
    refused = [one for one in findings if one.severity == "error" and one.name not in config.data.allow]
    check([f"{one.about or 'data.train'}: {one.line()}; or train on them: data.allow=[{one.name}]" for one in refused])
    return [f"{one.severity if one.severity == 'warning' else 'allowed'}: {one.line()}" for one in findings]
