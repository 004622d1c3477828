"""Dense layers after the pooling (LaBSE, sentence-t5, gtr-t5, EmbeddingGemma), as sentence-transformers' Dense.

Each is a linear layer and an activation; trainer/model/dense_layers.py builds them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.common.files import check
from data_prep.texts.tokenizer_rules import read_object

WEIGHTS = "model.safetensors"
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")  # of torch.nn, all without arguments
_INPUT = "sentence_embedding"  # sentence-transformers' name of what pooling gives


@dataclass(frozen=True)
class DenseSpec:
    """One dense layer."""

    folder: str  # of its weights
    name: str  # of its folder in a model folder of ours, and the prefix of its tensors in a checkpoint
    inputs: int  # numbers of an embedding before the layer
    outputs: int  # numbers of an embedding after it
    bias: bool
    activation: str


def read_dense(folder: Path, paths: Iterable[str], size: int | None, weights: bool = True) -> tuple[DenseSpec, ...]:
    """Reads the layers in these sub-folders, in order. size: numbers of a pooled embedding, if known. weights: False
    where they may be missing. Raises BadInput for layers that we would not compute as sentence-transformers does."""
    specs, problems = [], []
    for index, path in enumerate(paths, start=2):  # behind the transformer and the pooling
        layer = folder / path
        values = read_object(layer / "config.json")
        problems += [f"{layer}: {text}" for text in _problems(layer, values, size, weights)]
        inputs, size = (values.get(key, 0) for key in ("in_features", "out_features"))
        bias, activation = values.get("bias", True), _activation(values)
        specs.append(DenseSpec(str(layer), f"{index}_Dense", inputs, size, bias, activation))
    check(problems)
    return tuple(specs)


def _activation(values: dict) -> str:
    return str(values.get("activation_function", "torch.nn.modules.activation.Tanh"))


def _problems(folder: Path, values: dict, size: int | None, weights: bool) -> list[str]:
    problems = []
    if not all(isinstance(values.get(key), int) for key in ("in_features", "out_features")):
        problems.append("config.json does not say in_features and out_features")
    elif size and values["in_features"] != size:
        problems.append(f"takes {values['in_features']} numbers, but is given {size}")
    name = _activation(values)
    if not name.startswith("torch.nn.") or name.rpartition(".")[2] not in ACTIVATIONS:
        problems.append(f"its activation {name} is none of torch.nn's {', '.join(ACTIVATIONS)}; not supported")
    for key in ("module_input_name", "module_output_name"):
        if values.get(key, _INPUT) not in (_INPUT, None):
            problems.append(f"its {key} is {values[key]}, not {_INPUT}; not supported")
    if values.get("use_residual"):
        problems.append("its input is added to its output (use_residual); not supported")
    path = folder / WEIGHTS
    return problems or (_weights_problems(path, values) if weights or path.is_file() else [])


def _weights_problems(path: Path, values: dict) -> list[str]:
    expected = {"linear.weight": [values["out_features"], values["in_features"]]}
    expected |= {"linear.bias": [values["out_features"]]} if values.get("bias", True) else {}
    if not path.is_file():
        mend = "pickled weights (*.bin) are not loaded: load and save the model with sentence-transformers"
        return [f"holds no {WEIGHTS}; {mend}"]
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        return [f"{WEIGHTS} is damaged ({error})"]
    return [] if shapes == expected else [f"{WEIGHTS} holds {shapes}, config.json asks for {expected}"]


def shape_of(specs: tuple[DenseSpec, ...]) -> str:
    """Returns text such as 768 -> 3072 -> 768 (Identity, Identity)."""
    sizes = (specs[0].inputs, *(spec.outputs for spec in specs))
    kinds = (spec.activation.rpartition(".")[2] for spec in specs)
    return f"{' -> '.join(map(str, sizes))} ({', '.join(kinds)})"


def is_of(name: str, specs: Iterable[DenseSpec]) -> bool:
    """True if a tensor of a checkpoint belongs to one of the layers."""
    return any(name.startswith(f"{spec.name}.") for spec in specs)
