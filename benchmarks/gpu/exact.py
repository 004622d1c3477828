"""Is it right here: gradients against a CPU's, the same bytes again, texts that do not see their neighbours."""

import importlib.metadata
import os
import platform
from contextlib import suppress

import torch

from benchmarks.gpu.models import batch_of, engine_of, lengths_of, relative
from trainer.config.sections import LossConfig
from trainer.loss.objective import Objective
from trainer.train.step import compute_gradients

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "sentence-transformers")
LOSSES = {
    "infonce": {}, "gte": {"directions": "gte"}, "cosent_learned": {"name": "cosent", "temperature_lr": 0.01},
    "cosine": {"name": "cosine"}, "matryoshka": {"matryoshka": [8, 16]}, "masks": {"mask_margin": 0.0},
}  # fmt: skip
WHOLE, CHUNKED = 2**22, 256
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def environment(bench) -> dict:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found = {
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "device": bench.device.type,
    }
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name, "cards": torch.cuda.device_count(), "bytes": card.total_memory,
            "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }  # fmt: skip
    return found | {"tf32_override": os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")}


def gradients(bench) -> dict:
    """Relative error of a step's raw gradient: the device in fp32 against a CPU in fp32, in chunks and at once, and
    bf16 against fp32."""
    batch, found = batch_of(lengths_of(min(bench.scale.tokens, 8192), bench.scale.longest)), {}
    for name, folder in bench.models.items():
        if name == "decoder" and not bench.dry:
            continue  # minutes on a CPU
        expected = _gradient(engine_of(folder, torch.device("cpu"), None), batch, {}, WHOLE)
        for precision, dtype in PRECISIONS.items():
            engine = engine_of(folder, bench.device, dtype)
            for tokens in (WHOLE, CHUNKED):
                key = f"{name} {precision} {'at once' if tokens == WHOLE else 'in chunks'}"
                found[key] = relative(_gradient(engine, batch, {}, tokens), expected)
    folder = bench.models["encoder"]
    on_cpu, on_device = engine_of(folder, torch.device("cpu"), None), engine_of(folder, bench.device, None)
    for name, loss in LOSSES.items():
        small = batch_of(lengths_of(1024, bench.scale.longest))
        found[f"loss {name}"] = relative(*(_gradient(e, small, loss, CHUNKED) for e in (on_device, on_cpu)))
    return found


def _gradient(engine, batch, loss: dict, tokens: int) -> dict[str, torch.Tensor]:
    compute_gradients(engine, batch, Objective(LossConfig(**loss), True), tokens)
    return engine.gradients()


def deterministic(bench) -> dict:
    """The same step twice: are the bytes the same, with and without deterministic kernels."""
    batch, found = batch_of(lengths_of(bench.scale.tokens // 4, bench.scale.longest)), {}
    for precision, dtype in PRECISIONS.items():
        engine = engine_of(bench.models["encoder"], bench.device, dtype)
        for asked in (False, True):
            torch.use_deterministic_algorithms(asked)
            one, other = (_gradient(engine, batch, {}, WHOLE) for _ in range(2))
            found[f"{precision} {'asked for' if asked else 'not asked for'}"] = all(
                torch.equal(one[name], other[name]) for name in one
            )
    torch.use_deterministic_algorithms(False)
    return found


def eight_bits(bench) -> dict:
    """Does an embedding depend on the texts beside it: the largest difference, alone against beside others."""
    found = {}
    for kind, model in {"full": {}, "8 bits": {"finetune": "qlora", "quantization_bits": 8}}.items():
        dtype = torch.bfloat16 if bench.device.type == "cuda" else None
        engine = engine_of(bench.models["encoder"], bench.device, dtype, **model)
        engine.embedder.eval()
        tokens = torch.randint(4, 2000, (64,), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            alone = engine.embed(tokens[:16], [16], seed=0)[0]
            beside = engine.embed(tokens, [16, 16, 16, 16], seed=0)[0]
        found[kind] = float((alone - beside).abs().max())
    return found
