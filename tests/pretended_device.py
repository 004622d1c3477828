"""A pretended accelerator: real numbers behind tensors that say device "meta".

- An operation that mixes such tensors with plain ones raises Mixed, as CUDA would.
- Every synchronisation of host and device is counted in `Pretended.synchronisations`, by kind and place; a copy that
  the host does not wait for (non_blocking, from pinned memory) is none.
- Not covered: NCCL, autocast, kernels, memory.

    with Pretended() as device:
        device.take(module)              # its parameters and buffers
        loss = module(device.put(x))     # x: a CPU tensor
"""

import collections
import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
META = torch.device("meta")
INDEXING = (
    aten.index.Tensor,
    aten._index_put_impl_.default,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
)
SIZES_FROM_VALUES = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
)


class Mixed(RuntimeError):
    """Tensors of two devices met in one operation."""


class OnDevice(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        layout = {"strides": real.stride(), "storage_offset": real.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, real.shape, **layout, dtype=real.dtype, device=META)
        tensor.real_ = real
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        raise AssertionError("used outside of `with Pretended()`")

    def __repr__(self):
        return f"OnDevice({self.real_})"


class Pretended:
    """The device, for the length of a `with` statement."""

    def __init__(self):
        self.synchronisations: collections.Counter[str] = collections.Counter()
        self._modes = _Functions(self), _Operations(self)

    def __enter__(self):
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def count(self, kind: str, times: int = 1) -> None:
        if times:
            frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/" not in f.filename]
            self.synchronisations[f"{kind} at {frames[-1].filename}:{frames[-1].lineno}"] += times

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return OnDevice(tensor)

    def take(self, module: torch.nn.Module) -> torch.nn.Module:
        moved = {p: torch.nn.Parameter(OnDevice(p.data), p.requires_grad) for p in module.parameters()}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:  # one that stands at two places stays one
                    part._parameters[name] = moved[parameter]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = OnDevice(buffer)
        return module

    def run(self, function, arguments, keywords):
        """Runs one operation on the real numbers; keeps the books of devices."""
        leaves = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        device = keywords.get("device")
        to_us = device is not None and torch.device(device).type == "meta"
        real_arguments, real_keywords = tree_map(_real, arguments), tree_map(_real, keywords)
        if to_us:
            real_keywords["device"] = torch.device("cpu")
        if function is aten.copy_.default:
            self._copied(arguments[0], arguments[1])
            function(*real_arguments, **real_keywords)
            return arguments[0]
        if function is aten._to_copy.default:
            target = isinstance(arguments[0], OnDevice) if device is None else to_us
            if not real_keywords.get("non_blocking"):
                self._moved(isinstance(arguments[0], OnDevice), target)
            out = function(*real_arguments, **real_keywords)
            return OnDevice(out) if target else out
        if function is aten._local_scalar_dense.default:
            self.count("read by the host", bool(ours))
            return function(*real_arguments)
        if to_us:
            return _wrapped(function(*real_arguments, **real_keywords), {})
        if not ours:
            return function(*real_arguments, **real_keywords)
        self._check(function, leaves, ours)
        if function in SIZES_FROM_VALUES:
            self.count(f"size decided by values: {function}")
        if function in INDEXING and any(
            index.dtype == torch.bool for index in tree_leaves(arguments[1]) if isinstance(index, torch.Tensor)
        ):
            self.count("index by bool")
        return _wrapped(function(*real_arguments, **real_keywords), {id(t.real_): t for t in ours})

    def _check(self, function, leaves: list[torch.Tensor], ours: list[torch.Tensor]) -> None:
        """Raises Mixed as CUDA would: only numbers without dimensions may come from the CPU, and CPU indices."""
        plain = [leaf for leaf in leaves if not isinstance(leaf, OnDevice)]
        shaped = [leaf for leaf in plain if leaf.dim()]
        if shaped and (function not in INDEXING or not any(t.dim() for t in ours)):
            seen = [(leaf.device.type, tuple(leaf.shape), leaf.dtype) for leaf in leaves]
            raise Mixed(f"{function}: {seen}")
        if shaped:
            self.count("index by a CPU tensor")

    def _copied(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._moved(isinstance(source, OnDevice), isinstance(target, OnDevice))

    def _moved(self, was_ours: bool, is_ours: bool) -> None:
        if was_ours != is_ours:
            self.count("copy to the device" if is_ours else "copy to the host")


def _real(value):
    return value.real_ if isinstance(value, OnDevice) else value


def _wrapped(out, known: dict[int, torch.Tensor]):
    """Tensors of an operation's result, wrapped; those that it changed in place stay the same objects."""

    def wrap(value):
        if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
            return known.get(id(value)) if id(value) in known else OnDevice(value)
        return value

    return tree_map(wrap, out)


class _Operations(TorchDispatchMode):
    def __init__(self, device: Pretended):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return self.device.run(function, arguments, dict(keywords or {}))


class _Functions(TorchFunctionMode):
    """Calls that never reach the dispatcher as one operation: tensors of Python lists, and lists of tensors."""

    def __init__(self, device: Pretended):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        count = self.device.count
        ours = bool(arguments) and isinstance(arguments[0], OnDevice)
        if function is torch.tensor and keywords.get("device") is not None and keywords["device"] == META:
            count("made from a list")
            wanted = keywords.pop("requires_grad", False)
            del keywords["device"]
            return OnDevice(torch.tensor(*arguments, **keywords)).requires_grad_(wanted)
        if function is torch.Tensor.new_tensor and ours:
            count("made from a list")
            return OnDevice(torch.tensor(arguments[1], dtype=keywords.get("dtype", arguments[0].dtype)))
        if function is torch.Tensor.__getitem__ and ours and isinstance(arguments[1], list):
            count("index by a list")
            return aten.index(arguments[0], [OnDevice(torch.tensor(arguments[1], dtype=torch.int64))])
        if function is torch.Tensor.tolist and ours:
            count("read by the host")
            return arguments[0].real_.tolist()
        return function(*arguments, **keywords)
