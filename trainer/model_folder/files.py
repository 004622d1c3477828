"""The files of a model folder: fetching them, the adapter's base, and its weights."""

import hashlib
import json
import math
import mmap
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.common.errors import BadInput
from data_prep.texts import tokenizer_rules as model_folder
from data_prep.texts.tokenizer_rules import TOKENIZER_FILES, read_json, read_object
from trainer.model_folder.dense import WEIGHTS

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # of sentence-transformers, in this order
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRAINING_CONFIG = "training_config.json"  # the run file of the run that wrote the folder


def fetch(path: str, with_code: bool = False) -> str:
    """Returns the local folder of a model: `path` itself, or the cached hub snapshot of an id."""
    patterns = (*TOKENIZER_FILES, "*.safetensors", *(["*.py"] if with_code else []))
    return model_folder.fetch(path, patterns, "model.path")


def base_folder(folder: Path, with_code: bool = False) -> Path:
    """Returns the folder of the transformer's weights: `folder`, or the base of an adapter folder."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return folder
    return Path(fetch(str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")), with_code))


def weight_files(folder: Path) -> list[tuple[str, Path]]:
    """Returns (prefix of its tensors' names in a checkpoint, file) for every weights file of a model."""
    layers = [(f"{index}_Dense.", folder / path / WEIGHTS) for index, path in enumerate(dense_paths(folder), start=2)]
    return [*(("", path) for path in sorted(folder.glob("*.safetensors"))), *layers]


def dense_paths(folder: Path) -> list[str]:
    """Sub-folders of the dense layers behind the pooling, in their order."""
    return [module["path"] for module in read_modules(folder) if module["kind"] == "Dense"]


def weights_sha256(folder: Path) -> str:
    """Returns the sha256 of a model's stored weights: names, types, shapes and bytes of all tensors, in any files."""
    tensors = {}
    for before, path in weight_files(folder):
        if path.name == ADAPTER_WEIGHTS:
            continue
        size, header = _header(path)
        tensors |= {before + name: (path, 8 + size, facts) for name, facts in header.items()}
    digest = hashlib.sha256()
    for name, (path, first, facts) in sorted(tensors.items()):
        digest.update(json.dumps([name, facts["dtype"], facts["shape"]]).encode())
        start, stop = (first + offset for offset in facts["data_offsets"])
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            digest.update(memoryview(data)[start:stop])
    return digest.hexdigest()


def _header(path: Path) -> tuple[int, dict]:
    """Returns the header of a safetensors file, without its metadata, and its bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path}: is no safetensors file")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return size, header


def tensor_facts(path: Path) -> list[tuple[str, int]]:
    """Returns (type, numbers) of every tensor of a safetensors file. Raises OSError or ValueError for another file."""
    return [(facts["dtype"], math.prod(facts["shape"])) for facts in _header(path)[1].values()]


def fp32_bytes(folder: Path) -> int:
    """Returns the bytes of a model folder's parameters in fp32; 0 if they cannot be read."""
    count = 0
    with suppress(SafetensorError, OSError):
        for _, file in weight_files(folder):
            with safe_open(file, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return 4 * count


def read_modules(folder: Path) -> list[dict]:
    """Reads modules.json; each module gets its `kind`, one of MODULES. Raises BadInput for others: leaving one out
    would give other embeddings."""
    path = folder / "modules.json"
    modules = read_json(path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise BadInput(f"{path}: not a list of modules with type and path")
    for module in modules:
        package, _, module["kind"] = module["type"].rpartition(".")
        if module["kind"] == "Router":
            raise BadInput(
                f"{path}: a Router gives queries and documents different embeddings; of a folder of "
                "trainer.adapt_queries name its model, and the folder as --query-adapter of trainer.search"
            )
        if module["kind"] not in MODULES or not package.startswith("sentence_transformers."):
            raise BadInput(
                f"{path}: module {module['type']} is none of sentence-transformers' {', '.join(MODULES)}; not "
                "supported, and with model.trust_remote_code neither"
            )
    kinds = [module["kind"] for module in modules]
    if kinds != sorted(kinds, key=MODULES.index) or kinds.count("Pooling") > 1 or kinds.count("Transformer") > 1:
        raise BadInput(f"{path}: modules {', '.join(kinds)}; supported are {', '.join(MODULES)} in this order")
    return modules


def zero_tensors(folder: Path) -> list[str]:
    """Returns the names of stored tensors that are all zeros (biases of a new model, an unused token type)."""
    return [name for name, tensor in stored_tensors(folder) if not tensor.any()]


def stored_tensors(folder: Path):
    for before, path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield before + name, file.get_tensor(name)
