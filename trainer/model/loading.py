"""Loading once: one rank reads the weights, from files that are mapped into memory, a tensor at a time.

- transformers builds the model on every rank from hollow tensors, which have a shape and no memory. Names, ties and
  missing weights stay its own business.
- The tensor of the files that a parameter gets is recognised by the storage of its hollow one.
- An engine then fills the parameters one by one, on their device and in their dtype; ranks get rank 0's numbers.
- So a node holds the files once, in pages of the system's cache, however many ranks it has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from data_prep.texts.tokenizer_rules import read_object

if TYPE_CHECKING:
    from trainer.model.base_dtype import Rounded

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # as transformers names them


class Sources:
    """The numbers of parameters that are hollow until an engine fills them."""

    def __init__(self, reads: bool):
        """reads: this rank gives the numbers; others only make room for them."""
        self.reads = reads
        self.rounded: Rounded | None = None  # with the parameters that are filled in bf16
        self._numbers: dict[nn.Parameter, Callable[[], Tensor]] = {}

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._numbers

    def hollow(self, parameter: nn.Parameter, numbers: Callable[[], Tensor]) -> None:
        """Takes the memory of a parameter; fill() gives it back. numbers: reads them as they are stored."""
        self._numbers[parameter] = numbers
        parameter.data = hollow(parameter.shape)

    def read(self, parameter: nn.Parameter) -> Tensor:
        """Returns the numbers as they are stored, of a hollow parameter or a filled one."""
        return self._numbers[parameter]() if parameter in self._numbers else parameter.data

    def dtype_of(self, parameter: nn.Parameter) -> torch.dtype:
        """Returns the dtype in which the parameter is trained or kept."""
        return torch.bfloat16 if self.rounded and parameter in self.rounded.parameters else torch.float32

    def round(self, parameter: nn.Parameter) -> None:
        """Stores the numbers of a filled parameter in its dtype; a hollow one gets it when it is filled."""
        if parameter not in self:
            parameter.data = self._converted(parameter, parameter.data)

    def make_real(self, parameter: nn.Parameter) -> None:
        """Fills a parameter before an engine does, in fp32 on the CPU, to be copied or written to; with zeros on ranks
        that do not read, for whatever is computed from it there until it is filled."""
        if not self.reads and self._numbers.pop(parameter, None):
            parameter.data = torch.zeros(parameter.shape)
            return
        self.fill(parameter, torch.device("cpu"))
        parameter.data = parameter.data.clone()

    def room(self, parameter: nn.Parameter, device: torch.device) -> None:
        """Gives a hollow parameter memory without numbers, which the system hands out once it is written to."""
        if parameter in self._numbers:
            parameter.data = torch.empty(parameter.shape, dtype=self.dtype_of(parameter), device=device)

    def fill(self, parameter: nn.Parameter, device: torch.device, room: Tensor | None = None) -> None:
        """Moves a parameter to the device; on the rank that reads, a hollow one has its numbers then. room: bytes for
        it on other ranks, which one parameter has after the other."""
        numbers = self._numbers.pop(parameter, None)
        if numbers is None:
            parameter.data = parameter.data.to(device)
        elif self.reads:
            parameter.data = self._converted(parameter, numbers()).to(device)
        elif room is None:
            parameter.data = torch.empty(parameter.shape, dtype=self.dtype_of(parameter), device=device)
        else:
            dtype = self.dtype_of(parameter)
            parameter.data = room[: parameter.numel() * dtype.itemsize].view(dtype).view(parameter.shape)

    def fill_in_place(self, parameter: nn.Parameter) -> None:
        """Writes the numbers into the memory that the parameter has by now, on the rank that reads."""
        numbers = self._numbers.pop(parameter, None)
        if numbers is not None and self.reads:
            parameter.data.copy_(self._converted(parameter, numbers()))

    def close(self) -> None:
        """Lets go of the files, of which some weights may not be used."""
        self._numbers.clear()

    def _converted(self, parameter: nn.Parameter, stored: Tensor) -> Tensor:
        dtype = self.dtype_of(parameter)
        converted = stored.to(dtype)
        if self.rounded and dtype == torch.bfloat16:
            self.rounded.note(stored, converted)
        return converted


def hollow(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Returns zeros in fp32 of any shape, all of them the same four bytes."""
    return torch.zeros(()).expand(tuple(shape))


class Stored:
    """The tensors of a folder's weights, in place of whose memory transformers gets hollow ones."""

    def __init__(self, files: list[Path]):
        self.state: dict[str, Tensor] = {}  # by name
        self._readers: dict[int, Callable[[], Tensor]] = {}  # by the address of a hollow tensor's four bytes
        for path in files:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118
                self._add(file, name)

    def _add(self, file, name: str) -> None:
        part = file.get_slice(name)
        if not part.get_dtype().startswith(("F", "BF")):  # positions and the like: small
            self.state[name] = file.get_tensor(name)
            return
        self.state[name] = hollow(part.get_shape())
        self._readers[self.state[name].untyped_storage().data_ptr()] = lambda: file.get_tensor(name)

    def reader(self, tensor: Tensor) -> Callable[[], Tensor] | None:
        """Returns the way to the numbers of a tensor that is one of the hollow ones, None for others."""
        return self._readers.get(tensor.untyped_storage().data_ptr())

    def trace(self, backbone: nn.Module, sources: Sources, missing: set[str]) -> bool:
        """Notes the numbers of all parameters and gives buffers theirs. Returns False where transformers computed
        weights from several tensors: nothing is noted then. missing: names without a tensor in the files."""
        found = {parameter: self.reader(parameter) for parameter in backbone.parameters()}
        unknown = {name for name, parameter in backbone.named_parameters() if not found[parameter]}
        if _computes(backbone) or unknown - missing:
            return False
        for parameter, reader in found.items():
            if reader:
                sources.hollow(parameter, reader)
        for module in backbone.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and (numbers := self.reader(buffer)):
                    module._buffers[name] = numbers().to(buffer.dtype).clone()
        return True


def load(kind: type, folder: str | Path, sources: Sources | None, own_code: bool, arguments: dict) -> tuple:
    """Returns (backbone, what transformers says of its loading). kind, arguments: of from_pretrained. sources: takes
    the numbers; None: they are loaded. own_code: the folder's own class loads itself."""
    files = weights_of(folder) if sources and not own_code else []
    made = class_of(kind, arguments["config"])
    if files and made:
        stored = Stored(files)
        shared = {key: value for key, value in arguments.items() if key != "trust_remote_code"}
        backbone, loading = made.from_pretrained(None, state_dict=stored.state, **shared)
        if stored.trace(backbone, sources, set(loading["missing_keys"])):
            backbone.name_or_path = backbone.config.name_or_path = str(folder)
            return backbone, loading
    backbone, loading = kind.from_pretrained(folder, **arguments)
    if sources and not sources.reads:  # it has the shapes now
        for parameter in backbone.parameters():
            sources.hollow(parameter, parameter.data.detach)
    return backbone, loading


def class_of(kind: type, settings) -> type | None:
    """Returns the class that from_pretrained of `kind` (AutoModel, or a model's own) makes; None where it depends on
    more than the type of the config."""
    found = kind._model_mapping.get(type(settings), None) if hasattr(kind, "_model_mapping") else kind
    return found if isinstance(found, type) else None


def _computes(backbone: nn.Module) -> bool:
    """True where transformers made weights by more than renaming (the experts of a mixture, for example)."""
    used = getattr(backbone, "_weight_conversions", None)
    return used is None or any(hasattr(conversion, "operations") for conversion in used)


def weights_of(folder: str | Path) -> list[Path]:
    """Returns the files that transformers loads from a folder; none where it would take others than the usual ones."""
    folder = Path(folder)
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    shards = sorted(set(read_object(folder / INDEX).get("weight_map", {}).values()))
    return [folder / name for name in shards] if all((folder / name).is_file() for name in shards) else []
