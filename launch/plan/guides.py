"""The guides of a run's losses (loss.guide), by what their folders say. Imports no torch."""

from pathlib import Path
from typing import NamedTuple

from data_prep.texts.tokenizer_rules import read_json
from trainer.config.sections import RunConfig
from trainer.inference.reading import as_guide
from trainer.model_folder.files import fetch, fp32_bytes
from trainer.model_folder.spec import hidden_size, read_spec


class GuideFacts(NamedTuple):
    """A guide as the plan counts it."""

    size: int  # numbers of an embedding
    weights: int  # bytes on every rank


def guides_of(config: RunConfig) -> dict[str, GuideFacts]:
    """Returns the guides of all losses by path. Raises BadInput."""
    found = {}
    for path in {loss.guide.model for loss in config.losses.values() if loss.guide}:
        model = as_guide(path, config.model)
        spec = read_spec(model, fetch(model.path, model.trust_remote_code))
        size = spec.dense[-1].outputs if spec.dense else hidden_size(read_json(Path(spec.base) / "config.json"))
        found[path] = GuideFacts(size or 0, fp32_bytes(Path(spec.base)))
    return found
