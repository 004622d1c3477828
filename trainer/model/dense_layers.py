"""Dense layers as torch modules: built, loaded, written. model_folder/dense.py reads what a folder says of them."""

import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.model_folder.dense import WEIGHTS, DenseSpec


def build(specs: Iterable[DenseSpec]) -> nn.ModuleDict:
    """Returns name -> layer, with random weights."""

    def layer(spec: DenseSpec) -> nn.Sequential:
        linear = nn.Linear(spec.inputs, spec.outputs, bias=spec.bias)
        activation = getattr(nn, spec.activation.rpartition(".")[2])()
        return nn.Sequential(OrderedDict(linear=linear, activation=activation))

    return nn.ModuleDict({spec.name: layer(spec) for spec in specs})


def load(specs: Iterable[DenseSpec], checkpoint: Path | None = None) -> nn.ModuleDict:
    """Builds the layers with the weights of their folders, or of a checkpoint of ours."""
    layers = build(specs)
    for spec in specs:
        folder = checkpoint / spec.name if checkpoint else Path(spec.folder)
        layers[spec.name].load_state_dict({name: t.float() for name, t in load_file(folder / WEIGHTS).items()})
    return layers


def write(folder: Path, specs: Iterable[DenseSpec], weights: dict[str, Tensor]) -> None:
    """Writes the sub-folders of a model folder. weights: by name, as in a checkpoint. A layer without weights there was
    not trained, and is written as it was read."""
    for spec in specs:
        own_folder = folder / spec.name
        own_folder.mkdir(exist_ok=True)
        own = {n.removeprefix(f"{spec.name}."): t for n, t in weights.items() if n.startswith(f"{spec.name}.")}
        save_file(own or load_file(Path(spec.folder) / WEIGHTS), own_folder / WEIGHTS, metadata={"format": "pt"})
        values = {"in_features": spec.inputs, "out_features": spec.outputs, "bias": spec.bias}
        values |= {"activation_function": spec.activation}
        (own_folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
