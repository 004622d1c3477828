"""Everything that can be known to be wrong before a process group or a model exists. Never imports torch."""

from data_prep.common.errors import BadInput
from data_prep.quality.gate import Gate
from data_prep.shards.folder import open_shards
from data_prep.texts.token_lengths import Reader
from trainer.config.compatibility import check_modes
from trainer.config.sections import RunConfig
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import read_spec
from trainer.preflight.collecting import _collect
from trainer.preflight.data import _check_data, _check_tokens
from trainer.preflight.evaluation import _check_eval, _check_watch
from trainer.preflight.losses import _check_functions, _check_losses
from trainer.preflight.model import check_model
from trainer.preflight.output import _check_output
from trainer.run_dir.trackers import check_tracking


def check_run(config: RunConfig, resume: bool, own_loss: bool = False, engine: str | None = None) -> list[str]:
    """Raises one BadInput with every problem of model, data and output folder; returns a line for each warning.

    own_loss: a function takes the place of the run file's losses. engine: where it is known already.
    """
    problems: list[str] = []
    _collect(problems, check_modes, config, engine)
    spec = _collect(problems, check_model, config)
    fingerprint = _collect(problems, _check_data, config, key="data.train")
    if spec and fingerprint:
        _collect(problems, _check_tokens, config, spec, key="data.train")
    if not own_loss:
        _collect(problems, _check_functions, config)
        if fingerprint:
            _collect(problems, _check_losses, config)
    _collect(problems, _check_eval, config)
    if fingerprint:
        _collect(problems, _check_watch, config)
    _collect(problems, check_tracking)
    _collect(problems, _check_output, config, resume, fingerprint, spec)
    if problems:
        raise BadInput(problems)
    return _pass_gate(config)  # last: it reads the data, and needs the model's tokenizer and the evaluation sets


def _pass_gate(config: RunConfig) -> list[str]:
    """What the gate (data_prep/quality/gate.py) found, one line each; BadInput for what data.allow does not list."""
    spec = read_spec(config.model, fetch(config.model.path, config.model.trust_remote_code))
    evals = {"data.eval": config.data.eval, "data.general": config.data.general}
    evals |= {f"sources.{name}.eval": own.eval for name, own in config.sources.items()}
    proportional = "data.mixing: round_robin or temperature takes them more often"
    gate = Gate(
        open_shards(config.data.train),
        {key: path for key, path in evals.items() if path},
        Reader(spec.path, spec.rules),
        proportional if config.data.mixing == "proportional" else None,
    )
    found = gate.findings()
    refused = [one for one in found if one.severity == "error" and one.name not in config.data.allow]
    if refused:
        raise BadInput(
            [f"{one.about or 'data.train'}: {one.line()}; or train on them: data.allow=[{one.name}]" for one in refused]
        )
    return [f"{one.severity if one.severity == 'warning' else 'allowed'}: {one.line()}" for one in found]
