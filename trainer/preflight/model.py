"""Definitions of this subject."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.common.errors import BadInput
from data_prep.texts.tokenizer_rules import read_json
from trainer.config.sections import RunConfig
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import ModelSpec, hidden_size, read_spec


def check_model(config: RunConfig) -> ModelSpec:
    folder = fetch(config.model.path, config.model.trust_remote_code)
    spec = read_spec(config.model, folder)
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
    for file in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model.path: {file} is damaged ({error})") from None
    return spec
