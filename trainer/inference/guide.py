"""A guide: a model that is not trained and embeds the texts of every batch, for the masks of a loss.

- Every rank has a whole copy, filled with rank 0's numbers. No engine divides it among the ranks, nothing updates it,
  and no checkpoint holds it.
- It has a tokenizer of its own, and reads texts as reading.as_guide says.
- Its forward pass has no gradient and no dropout, in chunks sorted by length: memory of one chunk.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config.sections import ModelConfig, OptimConfig
from trainer.engine.chunks import CHUNK_TOKENS, lay, make_chunks
from trainer.engine.start import Runtime
from trainer.engine.torch_engine import TorchEngine
from trainer.inference.reading import as_guide
from trainer.model.build import count_parameters, load_embedder
from trainer.model.loading import Sources
from trainer.model.tokenizer import tokenize


class Guide:
    """Tokens and embeddings of texts by a model that is not trained."""

    def __init__(self, path: str, trained: ModelConfig, runtime: Runtime):
        """path: folder or hub id. trained: the run's model, whose lengths it shares. Raises BadInput. Collective."""
        self.path, placing = path, (runtime.device, runtime.dtype)
        config, sources = as_guide(path, trained), Sources(reads=runtime.is_main)
        embedder, tokenizer, self.spec, _ = load_embedder(config, None, *placing, sources=sources)
        self.parameters = count_parameters(embedder)[1]
        # no optimizer step is ever made: an engine that holds, places and runs the model
        self.engine = TorchEngine(embedder, OptimConfig(), runtime.world, *placing)
        embedder.requires_grad_(False).eval()
        self._tokenizer = copy.deepcopy(tokenizer)  # it keeps the length it truncates to

    def tokens(self, queries: list[str], documents: list[str]) -> list[list[int]]:
        """Returns the token ids of queries, then documents."""
        rules = self.spec.rules
        of_queries, _ = tokenize(queries, rules.query_prompt, rules.query_max_len, self._tokenizer)
        return of_queries + tokenize(documents, rules.passage_prompt, rules.passage_max_len, self._tokenizer)[0]

    @torch.no_grad()
    def __call__(self, tokens: list[list[int]]) -> Tensor:
        """Returns (texts, g) float32 of length 1, on the engine's device. Not collective."""
        engine, lengths = self.engine, [len(ids) for ids in tokens]
        out = torch.zeros((len(tokens), engine.embedder.size), device=engine.device)
        for chunk in make_chunks(lengths, CHUNK_TOKENS[engine.device.type], engine.embedder.packing is not None):
            out[torch.tensor(chunk, device=engine.device)] = engine.embed(*lay(chunk, tokens), seed=0)
        return F.normalize(out, dim=1)

    @property
    def forward_numbers(self) -> int:
        """Parameters that a token passes through: all but the table of its embeddings."""
        return self.parameters - self.engine.embedder.backbone.get_input_embeddings().weight.numel()
