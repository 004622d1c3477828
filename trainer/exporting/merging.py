"""An adapter added to the weights of its base."""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from data_prep.common.console import say
from data_prep.common.errors import BadInput, Failed
from trainer.config.sections import ModelConfig, OptimConfig
from trainer.distributed.collectives import World
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.encode import encode
from trainer.inference.probe import PROBE, ROUNDED_COSINE, Probe, probe_texts, read_probe, take_probe
from trainer.model.adapters import check_base_of, merged
from trainer.model.build import build_embedder
from trainer.model.embedder import Embedder
from trainer.model.quantization import dequantize
from trainer.model.save import save_embedder
from trainer.model.tokenizer import load_tokenizer
from trainer.model_folder.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_CONFIG, fetch
from trainer.model_folder.spec import ModelSpec, read_spec
from trainer.run_dir.checkpoint_writer import write_output

LIMIT = 1e-4  # of 1 - cosine between merged and unmerged embeddings, where both have the same base in fp32


def merge(
    base: str, adapter: Path, output: Path, precision: str = "float32", onto: str = "dequantized",
    pooling: str | None = None, trust_remote_code: bool = False,
) -> float:  # fmt: skip
    """Writes the folder of a whole model; returns the largest 1 - cosine between its embeddings and the unmerged ones.
    Raises BadInput for a wrong base or a folder that is none, Failed where the embeddings differ too much.

    base: folder or hub id. adapter: folder, or the weights in it. precision: float32 or bfloat16, of what is written.
    onto: for the adapter of a quantised base, "dequantized" (the weights it was trained on) or "full" (as the base is
    stored). pooling: where neither folder states it. trust_remote_code: the base's own code may run.
    """
    adapter = adapter_folder(adapter)
    check_output(output, "--output_path")
    whole = add(base, adapter, precision, onto, pooling, trust_remote_code)

    def write(target: Path) -> None:
        whole.write(target)
        if (adapter / TRAINING_CONFIG).is_file():
            shutil.copyfile(adapter / TRAINING_CONFIG, target / TRAINING_CONFIG)

    write_output(output, write)
    return whole.difference


@dataclass
class Merged:
    """A whole model in memory."""

    embedder: Embedder
    tokenizer: object
    spec: ModelSpec
    weights: dict
    probe: Probe  # the adapter's own, else of the unmerged model (of `onto` "full": the merged)
    difference: float  # largest 1 - cosine to the unmerged embeddings

    def write(self, folder: Path) -> None:
        save_embedder(folder, self.weights, self.embedder, self.tokenizer, self.spec)
        self.probe.write(folder)


def add(
    base: str, adapter: Path, precision: str, onto: str, pooling: str | None, trust_remote_code: bool = False
) -> Merged:
    """Adds the adapter in a folder to its base; see merge."""
    folder = Path(fetch(base, trust_remote_code))
    described = adapter if (adapter / "modules.json").is_file() else folder  # peft alone writes no such files
    config = ModelConfig(path=str(described), pooling=pooling, trust_remote_code=trust_remote_code)
    spec = replace(read_spec(config, described, folder), path=str(adapter))
    check_base_of(adapter, folder)
    tokenizer = load_tokenizer(config, str(described))

    unmerged, _ = build_embedder(spec, config)
    engine = _engine(unmerged)
    expected = _embeddings(engine, tokenizer, spec)
    probe = read_probe(adapter) if (adapter / PROBE).is_file() else take_probe(engine, copy.deepcopy(tokenizer), spec)
    spec_of_output = replace(spec, bits=None)
    whole, untrained = build_embedder(spec_of_output, config)
    if spec.bits and onto == "dequantized":
        dequantize(unmerged.quantised, whole.backbone)
    whole.backbone, whole.adapter = merged(whole.adapter), None
    whole.requires_grad_(True)
    dtype = getattr(torch, precision)
    whole.to(dtype).float()  # rounded as it will be written
    engine = _engine(whole)
    difference = float((1 - cosine_similarity(_embeddings(engine, tokenizer, spec), expected)).max())
    if precision == "float32" and (not spec.bits or onto == "dequantized") and not difference < LIMIT:
        raise Failed(
            f"merged and unmerged embeddings differ by up to {difference:.1e} in cosine (limit {LIMIT:.0e}): nothing "
            "was written"
        )
    if probe.base_rounded:
        _check_rounding(take_probe(engine, copy.deepcopy(tokenizer), spec), probe, folder)
    if spec.bits and onto == "full":
        probe = replace(take_probe(engine, copy.deepcopy(tokenizer), spec), step=probe.step)
    weights = {name: tensor.to(dtype) for name, tensor in (engine.weights() | untrained).items()}
    zeros = sorted(name for name, tensor in weights.items() if not tensor.any())
    probe = replace(probe, rounded=probe.rounded or precision != "float32", zeros=zeros)
    return Merged(whole, tokenizer, spec_of_output, weights, probe, difference)


def _check_rounding(merged: Probe, trained: Probe, base: Path) -> None:
    """Says how far the weights as they were published are from their bf16 copies of the training. Raises Failed where
    the embeddings differ by more than rounding explains."""
    apart = max(
        float((1 - cosine_similarity(torch.tensor(one), torch.tensor(other))).max())
        for one, other in ((merged.queries, trained.queries), (merged.passages, trained.passages))
    )
    if not apart < 1 - ROUNDED_COSINE:
        raise Failed(
            f"embeddings differ by up to {apart:.1e} in cosine from those of the training, whose base was rounded to "
            f"bf16 (limit {1 - ROUNDED_COSINE:.0e}): nothing was written"
        )
    say(
        f"the adapter was trained on its base in bf16 and is added to the weights as {base} holds them; this changes "
        f"embeddings by at most {apart:.1e} in cosine"
    )


def _engine(embedder: Embedder) -> TorchEngine:
    """Returns an engine of one process on the CPU: merging is no work for a GPU, and fp32 is exact there."""
    return TorchEngine(embedder, OptimConfig(), World(), torch.device("cpu"), None)


def _embeddings(engine: TorchEngine, tokenizer, spec: ModelSpec) -> torch.Tensor:
    reader = copy.deepcopy(tokenizer)  # once used, it carries the length it cuts at
    return encode(engine, reader, probe_texts(tokenizer), spec.rules.passage_prompt, spec.rules.passage_max_len)


def adapter_folder(path: Path) -> Path:
    """Returns the folder of an adapter, named by itself or by its weights. Raises BadInput."""
    folder = path.parent if path.name == ADAPTER_WEIGHTS else path
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"--lora_adapter_path: {folder} is no adapter folder: it has no {' and no '.join(missing)}")
    return folder


def check_output(output: Path, flag: str) -> None:
    """Raises BadInput for anything but a new folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{flag}: {output} exists and is not an empty folder; name a new one")
