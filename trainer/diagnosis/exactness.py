"""Checks that an engine trains exactly on this machine: a tiny case, a plain reference of it, the comparison.

`python -m launch doctor --exactness` runs two parts. `--make FOLDER` writes the case and its reference.
`--config FOLDER/run.json --engine E`, started like any training run, compares the engine with the reference.
"""

import json
import math
import platform
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.common.files import write_json
from data_prep.sharding.build import shard
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.config.sections import OptimConfig, RunConfig
from trainer.engine.protocol import Engine
from trainer.engine.start import process_group, start
from trainer.frontends.command_line import fail, parser
from trainer.loss.objective import Objective
from trainer.preflight.inputs import Inputs
from trainer.train.data import TrainData
from trainer.train.setup import prepare
from trainer.train.step import compute_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS, BATCH_SIZE = 43, 16  # the last batch has 11 rows: the ranks' shares differ
WHOLE, CHUNKED = 2**20, 64  # micro_batch_tokens: all texts at once; two or three at a time
POSITIONS = 64
WORDS = [f"w{i}" for i in range(300)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
UPDATE = "update."  # prefix of a parameter's name: the change of the parameter by its one update


def make_case(folder: Path) -> None:
    """Writes model, shards, run.json, facts.json about this machine, and reference.safetensors."""
    _make_model(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    shard([rows], folder / "shards", eval_fraction=0.0)
    values = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "pooling": "mean", "normalize": True},
        "data": {"train": str(folder / "shards")},
        # A large eps: AdamW would divide a gradient that is only rounding by itself.
        "optim": {"lr": 1e-2, "eps": 1e-3, "schedule": "constant", "warmup_ratio": 0, "max_grad_norm": None},
        "train": {"batch_size": BATCH_SIZE, "micro_batch_tokens": WHOLE},
    }
    write_json(folder / "run.json", values)
    save_file(reference(load_config(folder / "run.json")), folder / "reference.safetensors")
    available = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    backends = [name for name, present in available.items() if present]
    write_json(folder / "facts.json", {"device": _device(), "backends": backends})


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    kind = "Apple GPU" if torch.backends.mps.is_available() else f"{torch.backends.cpu.get_cpu_capability()} CPU"
    return f"{kind}, {platform.machine()} {platform.system()}"


def _make_model(folder: Path) -> None:
    """Writes a BERT of 2 layers, 32 wide, with random weights, and a tokenizer that knows WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, SPECIAL.index(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def _rows() -> list[dict]:
    """Rows with no, one or two hard negatives; lengths differ much."""
    rng = random.Random(0)
    rows = []
    for _ in range(ROWS):
        topic = rng.sample(WORDS, 6)
        positive = topic + rng.choices(WORDS, k=rng.randint(0, 20))
        negatives = [" ".join(rng.choices(WORDS, k=rng.randint(2, 25))) for _ in range(rng.randint(0, 2))]
        rows.append({"query": " ".join(rng.sample(topic, 3)), "pos": [" ".join(positive)], "neg": negatives})
    return rows


def visits(steps: int) -> list[tuple[int, int]]:
    """Returns (step, micro_batch_tokens): every batch in chunks, then whole. The last visit updates the weights."""
    return [(step, tokens) for step in range(steps) for tokens in (CHUNKED, WHOLE)]


def reference(config: RunConfig) -> dict[str, Tensor]:
    """Returns each step's gradient as `<step>.<parameter>`, and the last visit's update as `update.<parameter>`.

    One process, one padded batch, plain autograd and AdamW, in float64. It shares no code with what it is compared to.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model = AutoModel.from_pretrained(config.model.path, dtype=torch.float64)
    model.eval()  # dropout off
    inputs = Inputs(config)
    rows, plan = inputs.shards.split("train"), inputs.plan
    named = {name: p for name, p in model.named_parameters() if not name.startswith("pooler.")}  # unused
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer, tensors = _adamw([*named.values()], config.optim), {}
    order = visits(plan.steps_per_epoch)
    for visit, (step, _) in enumerate(order):
        records = rows.take(plan.batch(step)[1].tolist())
        documents = [r.positives[0] for r in records] + [text for r in records for text in r.negatives]
        queries = _embed(model, tokenizer, [r.query for r in records])
        scores = queries @ _embed(model, tokenizer, documents).T / config.loss.temperature
        model.zero_grad()
        F.cross_entropy(scores, torch.arange(len(records))).backward()
        tensors |= {f"{step}.{name}": p.grad.clone() for name, p in named.items()}
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr if visit == len(order) - 1 else 0.0
        optimizer.step()
    return tensors | {UPDATE + name: p.detach() - before[name] for name, p in named.items()}


def _embed(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).double()
    return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def _adamw(parameters: Sequence[Tensor], optim: OptimConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def compare(config: RunConfig, run_file: str, engine: str | None, processes: int | None) -> None:
    """Writes errors.json into the output folder. Collective: one call per rank."""
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime, config.train.timeout_minutes):
        job = prepare(runtime, Inputs(config), resume=False)
        expected = load_file(Path(run_file).parent / "reference.safetensors")
        errors = engine_error(job.engine, job.data, job.objectives, config.optim.lr, expected)
        job.close()
        if runtime.is_main:
            write_json(job.run_dir / "errors.json", errors)


def engine_error(
    engine: Engine, data: TrainData, objectives: dict[str, Objective], lr: float, expected: dict[str, Tensor]
) -> dict[str, float]:
    """Returns the largest relative error of the gradients, and that of the update; empty on other ranks. Collective."""
    world = engine.world
    batches = [batch for _, batch in data.batches(0, data.plan.steps_per_epoch, world.rank, world.size)]
    before = {name: t.clone() for name, t in engine.weights().items()}
    order, errors = visits(len(batches)), []
    for visit, (step, tokens) in enumerate(order):
        compute_gradients(engine, batches[step], objectives[batches[step].source], tokens)
        errors.append(relative_error(engine.gradients(), _of(expected, f"{step}.")))
        engine.apply(lr if visit == len(order) - 1 else 0.0)  # a rate of 0 leaves the weights as they are
    after = engine.weights()
    if world.rank:  # has no weights, or not all
        return {}
    moved = {name: after[name] - before[name] for name in before}
    return {"gradient": max(errors), "update": relative_error(moved, _of(expected, UPDATE))}


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def relative_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|got - expected| / |expected|, over all parameters as one vector."""
    assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
    difference = sum((got[name].double() - t).square().sum().item() for name, t in expected.items())
    return math.sqrt(difference / sum(t.square().sum().item() for t in expected.values()))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--make"]:
        make_case(Path(argv[1]))
        return 0
    args = parser().parse_intermixed_args(argv)
    try:
        check_packages()
        compare(load_config(args.config, args.overrides), args.config, args.engine, args.processes)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
