"""A run's inputs without the weights of its model: from a hub come config, tokenizer and the heads of weights files.

Never imports torch.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.paths import expanded
from data_prep.texts import tokenizer_rules
from trainer.config.sections import RunConfig
from trainer.model_folder.files import ADAPTER_CONFIG, tensor_facts
from trainer.model_folder.spec import ModelSpec, read_spec
from trainer.preflight.inputs import Inputs

# tokenizer.json holds what the other files of a tokenizer say once more: they are fetched only where it is missing
CONFIG_FILES = (
    "config.json", "tokenizer.json", "*config.json", "modules.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
OTHER_TOKENIZERS = ("vocab.txt", "vocab.json", "merges.txt", "*.model")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Weights:
    """A model's weights, from the heads of their files."""

    files: int
    numbers: dict[str, int]  # numbers by their type, as safetensors names it

    @property
    def bytes(self) -> int:
        return sum(BYTES.get(kind, 4) * count for kind, count in self.numbers.items())


@dataclass
class WeightlessInputs(Inputs):
    """Inputs whose model folder may lack its weights. Raises BadInput as a run would, but for these."""

    weights: Weights | None = field(default=None, init=False)  # None: there are none here, and a hub did not tell

    def __post_init__(self):
        path = self.config.model.path
        folder = Path(_small_files(path, "model.path", self.config.model.trust_remote_code))
        if (folder / ADAPTER_CONFIG).is_file():
            raise BadInput(f"model.path: {folder} is an adapter; a run starts from its base (model.lora.start)")
        self._folder = folder
        self.weights = _weights_here(folder) or (_weights_of_hub(path) if tokenizer_rules.is_hub_id(path) else None)
        if self.config.model.tokenizer:
            tokenizer = _small_files(self.config.model.tokenizer, "model.tokenizer", False)
            self.config = _with_tokenizer(self.config, tokenizer)

    @property
    def weights_line(self) -> str:
        """One line about the weights, which no figure of a plan needs."""
        found, path = self.weights, self.config.model.path
        if found is None:
            return f"none in {path}; the plan needs none, the run will"
        if not found.numbers:
            return f"{found.files} file(s) that are no safetensors; the plan needs none, the run will"
        kinds = " and ".join(found.numbers)
        where = "not downloaded" if tokenizer_rules.is_hub_id(path) else "not read"
        return f"{found.bytes / 1e9:.2f} GB in {kinds}, {found.files} file(s), {where}"

    @cached_property
    def spec(self) -> ModelSpec:
        return read_spec(self.config.model, self._folder, weights=False, own_prompts=self.config.own_prompts)


def _with_tokenizer(config: RunConfig, folder: str) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"tokenizer": folder})})


def _small_files(path: str, key: str, with_code: bool) -> str:
    """Returns the local folder of a model: itself, or a hub snapshot without weights."""
    path = expanded(path)
    if not tokenizer_rules.is_hub_id(path):
        return path
    patterns = (*CONFIG_FILES, *(["*.py"] if with_code else []))
    folder = Path(tokenizer_rules.fetch(path, patterns, key))
    if not (folder / "tokenizer.json").is_file():
        tokenizer_rules.fetch(path, OTHER_TOKENIZERS, key)
    return str(folder)


def _weights_here(folder: Path) -> Weights | None:
    files = sorted(folder.glob("*.safetensors"))
    numbers: Counter = Counter()
    for path in files:
        with suppress(OSError, ValueError):
            for kind, count in tensor_facts(path):
                numbers[kind] += count
    return Weights(len(files), dict(numbers)) if files else None


def _weights_of_hub(name: str) -> Weights | None:
    """Reads the heads of a hub model's weights files. None where the hub cannot be asked: no figure needs them."""
    from huggingface_hub import HfApi

    hub, numbers, files = HfApi(), Counter(), []
    with suppress(Exception):  # no network, no such call, no safetensors
        model = hub.model_info(name)
        names = [entry.rfilename for entry in model.siblings]
        files = [file for file in names if file.endswith(".safetensors") and "/" not in file]
        for file in files:
            numbers.update(hub.parse_safetensors_file_metadata(name, file, revision=model.sha).parameter_count)
        return Weights(len(files), dict(numbers)) if files else None
    return None
