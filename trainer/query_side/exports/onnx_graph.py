"""A query adapter as an ONNX graph: `vectors` (n, d) float32 -> `mapped` (n, d), of length 1."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_prep.common.errors import Failed
from trainer.query_side.adapter import TINY, QueryAdapter

FILE = "query_adapter.onnx"
NEEDED = ("onnx", "onnxruntime")
OPSET, IR = 18, 10  # runtimes of 2023 and newer read them
SAME = 0.99999  # least cosine between onnxruntime and numpy


def onnx_problems() -> list[str]:
    """Returns a problem if a package for --onnx is missing."""
    missing = [name for name in NEEDED if not find_spec(name)]
    return [f"--onnx: {', '.join(missing)} not installed; pip install 'embedfleet[onnx]'"] if missing else []


def write_onnx(adapter: QueryAdapter, folder: Path) -> None:
    """Writes the graph, and compares what onnxruntime computes with numpy. Raises Failed if they differ."""
    import onnx

    onnx.save(graph_of(adapter), folder / FILE)
    given = np.random.default_rng(0).standard_normal((32, adapter.dim)).astype(np.float32)
    least = float((computed(folder / FILE, given) * adapter(given)).sum(axis=1).min())
    if not least > SAME:
        raise Failed(f"--onnx: onnxruntime computes other vectors than numpy (cosine {least:.6f}); leave --onnx out")


def computed(file: Path, vectors: np.ndarray) -> np.ndarray:
    """Returns what onnxruntime makes of (n, d) vectors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"vectors": vectors})[0]


def graph_of(adapter: QueryAdapter):
    """Returns the onnx.ModelProto."""
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {"axis": np.array([1], np.int64), "tiny": np.array([TINY], np.float32)}
    nodes, last = _unit(helper, "vectors", "given"), "given"
    for number, layer in enumerate(adapter.layers):
        weight, bias, dense = f"{number}.weight", f"{number}.bias", f"{number}.dense"
        constants |= {weight: layer.weight, bias: layer.bias}
        nodes.append(helper.make_node("Gemm", [last, weight, bias], [dense], transB=1))
        last = dense
        if layer.relu:
            last = f"{number}.relu"
            nodes.append(helper.make_node("Relu", [dense], [last]))
    nodes += _unit(helper, last, "mapped")
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", adapter.dim])] for name in ("vectors", "mapped")
    ]
    graph = helper.make_graph(nodes, "query_adapter", *ends, tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="embedfleet")
    checker.check_model(model, full_check=True)
    return model


def _unit(helper, given: str, name: str) -> list:
    """Returns the nodes that divide vectors by their lengths; a zero vector stays zero."""
    norm, length = f"{name}.norm", f"{name}.length"
    return [
        helper.make_node("ReduceL2", [given, "axis"], [norm], keepdims=1),
        helper.make_node("Max", [norm, "tiny"], [length]),
        helper.make_node("Div", [given, length], [name]),
    ]
