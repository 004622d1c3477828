"""Texts to embeddings, over all ranks."""

import torch
from torch import Tensor

from data_prep.common.console import track
from trainer.engine.chunks import CHUNK_TOKENS, lay, make_chunks
from trainer.engine.protocol import Engine
from trainer.model.tokenizer import prompt_tokens, tokenize


def encode(engine: Engine, tokenizer, texts: list[str], prompt: str, max_len: int) -> Tensor:
    """Returns (texts, d) float32 on the CPU, in the order of texts, on every rank. Collective."""
    mine = texts[engine.world.rank :: engine.world.size]
    tokens, _ = tokenize(mine, prompt, max_len, tokenizer)
    return embed(engine, tokens, len(texts), unpooled(engine, tokenizer, prompt))


def unpooled(engine: Engine, tokenizer, prompt: str) -> int:
    """Counts the first tokens of every text that the model does not pool: those of its prompt, or none."""
    return 0 if engine.embedder.pool_prompt else prompt_tokens(prompt, tokenizer)


def embed(engine: Engine, tokens: list[list[int]], total: int, skipped: int = 0) -> Tensor:
    """Returns (total, d) float32 on the CPU, on every rank. Collective. tokens: ids of this rank's texts, which are
    every world.size-th of `total`; embedded in chunks sorted by length. skipped: see unpooled."""
    world = engine.world
    lengths = [len(ids) for ids in tokens]
    chunks = make_chunks(lengths, CHUNK_TOKENS[engine.device.type], engine.embedder.packing is not None)
    table = world.gather_ints([len(tokens), len(chunks)]).tolist()
    if engine.lockstep:
        chunks += [[] for _ in range(max(row[1] for row in table) - len(chunks))]
    was_training = engine.embedder.training
    engine.embedder.eval()
    out: Tensor | None = None
    with torch.no_grad():
        for chunk in chunks if world.rank else track(chunks, "embedding (chunks)", len(chunks)):
            prompts = [skipped] * max(1, len(chunk)) if skipped else None
            part = engine.embed(*lay(chunk, tokens), seed=0, prompts=prompts)
            if out is None:
                out = part.new_zeros((len(tokens), part.shape[1]))
            if chunk:
                out[torch.tensor(chunk, device=part.device)] = part[: len(chunk)]
    engine.embedder.train(was_training)
    if out is None:
        out = torch.zeros((0, engine.embedder.size), device=engine.device)
    gathered = world.gather_rows(out, [row[0] for row in table]).cpu()
    # ranks took every world.size-th text: put them back in order
    order = torch.cat([torch.arange(rank, total, world.size) for rank in range(world.size)])
    return torch.empty_like(gathered).index_copy_(0, order, gathered)
