"""Is it fast, and does it fit: steps, shapes, modes, memory, and sentence-transformers beside it."""

import random

import torch
import torch.nn.functional as F

from benchmarks.gpu.exact import PRECISIONS
from benchmarks.gpu.models import batch_of, engine_of, lengths_of
from trainer.config.sections import LossConfig
from trainer.engine.chunks import CHUNK_TOKENS, lay, make_chunks
from trainer.loss.objective import Objective
from trainer.train import token_budget
from trainer.train.step import compute_gradients

SHAPES = 20


def new_shapes(bench) -> dict:
    """Milliseconds of chunks whose shapes are all new: end to end and padded, and padded by cuDNN's attention."""
    engine = engine_of(bench.models["encoder"], bench.device, torch.bfloat16)
    found = {"end to end": _per_chunk(bench, engine) if engine.embedder.packing else None}
    padded = engine_of(bench.models["encoder"], bench.device, torch.bfloat16)
    padded.embedder.packing = None
    padded.embedder.backbone.set_attn_implementation("sdpa")
    found["padded"] = _per_chunk(bench, padded)
    if bench.device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(True)
        found["padded, cuDNN's attention"] = _per_chunk(bench, padded)
        torch.backends.cuda.enable_cudnn_sdp(False)
    return found


def _per_chunk(bench, engine) -> float:
    engine.embedder.eval()
    rng = random.Random(1)
    longest = bench.scale.longest
    shapes = [[rng.randint(longest // 2, longest)] * rng.randint(2, 12) for _ in range(SHAPES)]
    texts = [torch.randint(4, 2000, (sum(shape),)) for shape in shapes]

    def work():
        with torch.no_grad():
            for tokens, shape in zip(texts, shapes):
                engine.embed(tokens, shape, seed=0)

    work()  # kernels and memory, on other shapes
    shapes[:] = [[shape[0] - 1] * (len(shape) + 1) for shape in shapes]
    texts[:] = [torch.randint(4, 2000, (sum(shape),)) for shape in shapes]
    return 1000 * bench.clock.seconds(work, rounds=1, warm=False) / SHAPES


def memory(bench) -> dict:
    """Bytes of a chunk: foretold by `micro_batch_tokens: auto`, and the most that it takes."""
    found = {}
    for name, folder in bench.models.items():
        for precision, dtype in PRECISIONS.items():
            engine = engine_of(folder, bench.device, dtype)
            kept = token_budget.activations(engine, bench.scale.longest)
            texts = max(1, min(CHUNK_TOKENS["cuda"], bench.scale.tokens) // bench.scale.longest)
            tokens, lengths = torch.ones(texts * bench.scale.longest, dtype=torch.int64), [bench.scale.longest] * texts
            peak = bench.clock.peak(lambda e=engine, t=tokens, n=lengths: e.backward(e.embed(t, n, seed=0).sum()))
            foretold = kept.per_token * len(tokens) + kept.per_chunk
            found[f"{name} {precision}"] = {
                "tokens": len(tokens), "foretold": foretold, "peak": peak, "per_token": kept.per_token,
                "per_chunk": kept.per_chunk,
            }  # fmt: skip
    return found


def _step(engine, batch, tokens: int):
    compute_gradients(engine, batch, Objective(LossConfig(), True), tokens)
    return engine.apply(1e-5)


def steps(bench) -> dict:
    """Tokens per second of optimizer steps, and their share of the device's best matrix product."""
    found = {}
    size = 256 if bench.dry else 8192
    lengths = lengths_of(bench.scale.tokens, bench.scale.longest)
    for precision, dtype in {"fp32": None, "tf32": None, "bf16": torch.bfloat16}.items():
        if precision == "tf32" and bench.device.type != "cuda":
            continue
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        best = bench.clock.products(dtype or torch.float32, size)
        for name, folder in bench.models.items():
            engine = engine_of(folder, bench.device, dtype)
            budget = token_budget.resolve_budget("auto", engine, _Lengths(bench.scale.longest))
            batch = batch_of(lengths)
            seconds = bench.clock.seconds(lambda e=engine, b=batch, t=budget: _step(e, b, t), rounds=2)
            work = _operations(engine, lengths)
            found[f"{name} {precision}"] = {
                "seconds": seconds, "tokens_per_second": sum(lengths) / seconds, "micro_batch_tokens": budget,
                "operations_per_second": work / seconds, "share_of_best_product": work / seconds / best,
                "end_to_end": engine.embedder.packing is not None,
            }  # fmt: skip
    torch.set_float32_matmul_precision("highest")
    return found


class _Lengths:
    """The part of a ModelSpec that resolve_budget reads."""

    def __init__(self, longest: int):
        self.rules = self
        self.max_len = longest


def _operations(engine, lengths: list[int]) -> float:
    """Operations on real tokens, both ways: 6 per number of the blocks' matrices and token, and attention's square.
    Embedding a text twice is no work."""
    config = engine.embedder.backbone.config
    matrices = sum(
        p.numel() for n, p in engine.embedder.backbone.named_parameters() if p.dim() == 2 and "embed" not in n
    )
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return sum(6 * matrices * n + 12 * config.num_hidden_layers * width * n * n for n in lengths)


def modes(bench) -> dict:
    """Seconds and peak bytes of a step of the decoder in every mode."""
    dtype = torch.bfloat16
    cases = {
        "full": {}, "full, recomputed": {"recompute": True}, "lora": {"finetune": "lora"},
        "lora, recomputed": {"finetune": "lora", "recompute": True}, "qlora 4": {"finetune": "qlora"},
        "qlora 8": {"finetune": "qlora", "quantization_bits": 8},
    }  # fmt: skip
    batch, found = batch_of(lengths_of(bench.scale.tokens // 4, bench.scale.longest)), {}
    for name, model in cases.items():
        engine = engine_of(bench.models["decoder"], bench.device, dtype, **model)
        budget = token_budget.resolve_budget("auto", engine, _Lengths(bench.scale.longest))
        peak = bench.clock.peak(lambda e=engine, t=budget: _step(e, batch, t))
        seconds = bench.clock.seconds(lambda e=engine, t=budget: _step(e, batch, t), rounds=1)
        found[name] = {"seconds": seconds, "peak": peak, "micro_batch_tokens": budget}
    return found


def peers(bench) -> dict:
    """Steps on the same texts, in bf16 on CUDA: ours, and sentence-transformers' model with its own loss."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    lengths = lengths_of(bench.scale.tokens // 4, bench.scale.longest)
    batch = batch_of(lengths)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else None
    engine = engine_of(bench.models["encoder"], bench.device, dtype)
    ours = bench.clock.seconds(lambda: _step(engine, batch, 2**22), rounds=2)
    model = SentenceTransformer(str(bench.models["encoder"]), device=str(bench.device))
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    sides = [_padded(batch.tokens[: batch.rows], bench), _padded(batch.tokens[batch.rows :], bench)]

    def step():
        with torch.autocast(bench.device.type, dtype, enabled=dtype is not None):
            value = loss([dict(side) for side in sides], None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    theirs = bench.clock.seconds(step, rounds=2)
    real = sum(lengths) / sum(side["input_ids"].numel() for side in sides)
    return {"ours_seconds": ours, "theirs_seconds": theirs, "speed": theirs / ours, "real_token_share": real}


def _padded(tokens: list[list[int]], bench) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(text) for text in tokens]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(bench.device)
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long()}


def encoding(bench) -> dict:
    """Texts per second of embedding alone, bf16: ours, and sentence-transformers' encode of the same texts."""
    from sentence_transformers import SentenceTransformer

    lengths = lengths_of(bench.scale.tokens, bench.scale.longest, seed=1)
    texts = [" ".join(f"w{(7 * i + j) % 2000}" for j in range(n)) for i, n in enumerate(lengths)]
    engine = engine_of(bench.models["encoder"], bench.device, torch.bfloat16)
    engine.embedder.eval()
    tokens = batch_of(lengths).tokens
    chunks = make_chunks([len(t) for t in tokens], CHUNK_TOKENS[bench.device.type], engine.embedder.packing is not None)

    def work():
        with torch.no_grad():
            return [engine.embed(*lay(chunk, tokens), seed=0) for chunk in chunks]

    ours = bench.clock.seconds(work, rounds=2)
    model = SentenceTransformer(str(bench.models["encoder"]), device=str(bench.device))
    if bench.device.type == "cuda":
        model.bfloat16()
    theirs = bench.clock.seconds(lambda: F.normalize(torch.as_tensor(model.encode(texts, batch_size=64))), rounds=1)
    return {"ours": len(texts) / ours, "theirs_with_tokenizer": len(texts) / theirs, "tokenized_here": False}
