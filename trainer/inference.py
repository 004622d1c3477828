"""A model folder as a function from texts to embeddings, in one process."""

import argparse
import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.problems import BadInput
from data_prep.progress import say
from data_prep.shards import sha256_of
from trainer.config import ModelConfig
from trainer.dense import WEIGHTS
from trainer.folder import POOLINGS, fetch, read_spec

if TYPE_CHECKING:
    import numpy as np

IDENTITY = ("config.json", "adapter_config.json", "tokenizer.json")  # beside the weights


class TextEncoder:
    """The queries' and the passages' side of a model folder or hub id, loaded when the first text comes.

    dim: Matryoshka: the first so many numbers of each embedding, at length 1 again where the model normalises
    (Kusupati et al. 2022, arXiv:2205.13147). cut: texts so far that were longer than the model reads.
    Raises BadInput for a folder that cannot be used, at once; and for a dim above the model's, once it is known.
    """

    def __init__(self, config: ModelConfig, device: str = "auto", dim: int | None = None):
        self.config, self.device, self.dim, self.cut = config, device, dim, 0
        self.folder = fetch(config.path, config.trust_remote_code)
        self.spec = read_spec(config, self.folder)

    @cached_property
    def loaded(self) -> tuple:
        """(engine of one process, tokenizer)."""
        import torch

        from trainer.collectives import World
        from trainer.config import OptimConfig
        from trainer.engine import TorchEngine
        from trainer.model import load_embedder
        from trainer.runtime import pick_device

        embedder, tokenizer, spec, _ = load_embedder(self.config)
        for note in spec.notes:
            say(f"{self.config.path}: {note}")
        if self.dim is not None and not 1 <= self.dim <= embedder.size:
            raise BadInput(f"--dim {self.dim}: {self.config.path} makes embeddings of {embedder.size} numbers")
        return TorchEngine(embedder, OptimConfig(), World(), torch.device(pick_device(self.device)), None), tokenizer

    @property
    def size(self) -> int:
        """d of the embeddings."""
        return self.dim or self.loaded[0].embedder.size

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides an embedding apart from prompt and length: weights, tokenizer, pooling, norm."""
        folder = Path(self.folder)
        files = sorted([*folder.rglob("*.safetensors"), *(p for name in IDENTITY if (p := folder / name).is_file())])
        files += sorted(folder.rglob("*.py")) if self.spec.own_code else []
        facts = [f"{file.relative_to(folder)} {sha256_of(file)}" for file in files]
        facts += [self.spec.pooling, str(self.spec.normalize)]
        facts += [f"{d.bias} {d.activation} {sha256_of(Path(d.folder) / WEIGHTS)}" for d in self.spec.dense]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    def queries(self, texts: list[str]) -> "np.ndarray":
        """(texts, d) float32."""
        return self._encode(texts, self.spec.query_prompt, self.spec.query_max_len)

    def passages(self, texts: list[str]) -> "np.ndarray":
        """(texts, d) float32."""
        return self._encode(texts, self.spec.passage_prompt, self.spec.passage_max_len)

    def _encode(self, texts: list[str], prompt: str, max_len: int) -> "np.ndarray":
        from torch.nn.functional import normalize

        from trainer.encode import encode
        from trainer.model import tokenize

        engine, tokenizer = self.loaded
        self.cut += tokenize(texts, prompt, max_len, tokenizer)[1]
        vectors = encode(engine, tokenizer, texts, prompt, max_len)
        if self.dim is not None:
            vectors = vectors[:, : self.dim]
            vectors = normalize(vectors, dim=1) if self.spec.normalize else vectors
        return vectors.numpy()


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a model folder reads texts, where its own word is not wanted; model_of reads them."""
    parser.add_argument("--max-len", type=int, help="tokens of queries and passages; default: the model's own")
    parser.add_argument("--pooling", choices=list(POOLINGS), help="default: the model folder's own")
    parser.add_argument("--query-prompt", help="put before every query; default: the model folder's own")
    parser.add_argument("--passage-prompt", help="put before every document; default: the model folder's own")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "mps", "cuda"])
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    about = "run the code that a model folder brings (auto_map), if you have read it; default: refuse such a folder"
    parser.add_argument("--trust-remote-code", action="store_true", help=about)


def model_of(path: str, args: argparse.Namespace) -> ModelConfig:
    """A model as the flags of add_model say. Raises BadInput."""
    from trainer.config import parse_section

    values = {"path": path, "pooling": args.pooling, "query_max_len": args.max_len, "passage_max_len": args.max_len}
    values |= {"query_prompt": args.query_prompt, "passage_prompt": args.passage_prompt}
    values |= {"trust_remote_code": args.trust_remote_code}
    return parse_section("model", values, "the command line")
