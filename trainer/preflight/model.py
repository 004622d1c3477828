"""Checks the model folder of a run."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_json
from trainer.model_folder.spec import ModelSpec, hidden_size
from trainer.model_folder.vocabulary import check_embedded
from trainer.preflight.inputs import Inputs


def check_model(inputs: Inputs) -> ModelSpec:
    """Returns the model's description. Raises BadInput for an adapter, damaged weights, tokens without an embedding, or
    a too large matryoshka."""
    config, spec = inputs.config, inputs.spec
    folder = spec.path
    if spec.is_adapter:
        raise BadInput(
            f"model.path: {folder} is an adapter; to go on training it, set model.path to its base {spec.base} and "
            "model.lora.start to this folder; to train all weights, merge it first (python -m trainer.merge)"
        )
    settings = read_json(Path(folder) / "config.json")
    size = spec.dense[-1].outputs if spec.dense else hidden_size(settings)
    for key, loss in config.losses.items():
        largest = loss.dims[0][0]
        if size and largest and largest > size:
            raise BadInput(f"{key}.matryoshka: {largest}, but the embeddings of {folder} have {size} dimensions")
    check_embedded(spec, config.model.tokenizer)
    for file in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model.path: {file} is damaged ({error})") from None
    return spec
