"""Does an engine train exactly, here? A tiny case, a plain reference of it, and the comparison on every engine.

`python -m launch doctor --exactness` runs this in two parts: --make FOLDER writes the case and its reference;
--config FOLDER/run.json --engine E, started like any training run, compares the engine with it.
"""

import json
import math
import platform
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.common.files import write_json
from data_prep.sharding.build import shard
from data_prep.shards.folder import open_shards
from trainer.config.imports import check_packages
from trainer.config.loading import load_config
from trainer.config.sections import OptimConfig, RunConfig
from trainer.engine.start import process_group, start
from trainer.frontends.command_line import fail, parser
from trainer.planner.from_config import make_plan
from trainer.train.setup import prepare
from trainer.train.step import compute_gradients

ROWS, BATCH_SIZE = 43, 16  # the last batch has 11 rows: the ranks' shares differ
WHOLE, CHUNKED = 2**20, 64  # micro_batch_tokens: all texts at once, two or three of them
POSITIONS = 64
WORDS = [f"w{i}" for i in range(300)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
UPDATE = "update."  # before a parameter's name: by how much the first step moved it


def make_case(folder: Path) -> None:
    """Writes model, shards, run.json, what this machine is, and reference.safetensors."""
    _make_model(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    shard([rows], folder / "shards", eval_fraction=0.0)
    values = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "pooling": "mean", "normalize": True},
        "data": {"train": str(folder / "shards")},
        # A large eps: where a gradient is nothing but rounding, AdamW would divide that by itself.
        "optim": {"lr": 1e-2, "eps": 1e-3, "schedule": "constant", "warmup_ratio": 0, "max_grad_norm": None},
        "train": {"batch_size": BATCH_SIZE, "micro_batch_tokens": WHOLE},
    }
    write_json(folder / "run.json", values)
    save_file(reference(load_config(folder / "run.json")), folder / "reference.safetensors")
    write_json(folder / "facts.json", {"device": _device(), "backends": _backends()})


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    kind = "Apple GPU" if torch.backends.mps.is_available() else f"{torch.backends.cpu.get_cpu_capability()} CPU"
    return f"{kind}, {platform.machine()} {platform.system()}"


def _backends() -> list[str]:
    there = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    return [name for name, present in there.items() if present]


def _make_model(folder: Path) -> None:
    """A BERT of 2 layers, 32 wide, with random weights, and a tokenizer that knows WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, SPECIAL.index(mark)) for mark in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def _rows() -> list[dict]:
    """Rows with no, one or two hard negatives; lengths differ much."""
    rng = random.Random(0)
    made = []
    for _ in range(ROWS):
        topic = rng.sample(WORDS, 6)
        positive = topic + rng.choices(WORDS, k=rng.randint(0, 20))
        negatives = [" ".join(rng.choices(WORDS, k=rng.randint(2, 25))) for _ in range(rng.randint(0, 2))]
        made.append({"query": " ".join(rng.sample(topic, 3)), "pos": [" ".join(positive)], "neg": negatives})
    return made


def visits(steps: int) -> list[tuple[int, int]]:
    """(step, micro_batch_tokens): every batch of an epoch in chunks and whole. The last visit updates the weights."""
    return [(step, tokens) for step in range(steps) for tokens in (CHUNKED, WHOLE)]


def reference(config: RunConfig) -> dict[str, Tensor]:
    """The gradient of each step, as `<step>.<parameter>`, and the last visit's update, as `update.<parameter>`.

    One process, one padded batch, plain autograd and AdamW, in float64. Nothing is used here that is to be compared:
    tokenising, pooling, the loss and the update are written anew.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model = AutoModel.from_pretrained(config.model.path, dtype=torch.float64)
    model.eval()  # dropout off
    rows, plan = open_shards(config.data.train).split("train"), make_plan(config)
    named = {name: p for name, p in model.named_parameters() if not name.startswith("pooler.")}  # unused
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer, found = _adamw(named.values(), config.optim), {}
    order = visits(plan.steps_per_epoch)
    for visit, (step, _) in enumerate(order):
        records = rows.take(plan.batch(step)[1].tolist())
        documents = [r.positives[0] for r in records] + [text for r in records for text in r.negatives]
        queries = _embed(model, tokenizer, [r.query for r in records])
        scores = queries @ _embed(model, tokenizer, documents).T / config.loss.temperature
        model.zero_grad()
        F.cross_entropy(scores, torch.arange(len(records))).backward()
        found |= {f"{step}.{name}": p.grad.clone() for name, p in named.items()}
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr if visit == len(order) - 1 else 0.0
        optimizer.step()
    return found | {UPDATE + name: p.detach() - before[name] for name, p in named.items()}


def _embed(model, tokenizer, texts: list[str]) -> Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).double()
    return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def _adamw(parameters, optim: OptimConfig) -> torch.optim.AdamW:
    decay: dict[bool, list] = {True: [], False: []}
    for parameter in parameters:
        decay[parameter.dim() > 1].append(parameter)
    groups = [
        {"params": decay[True], "weight_decay": optim.weight_decay},
        {"params": decay[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def compare(config: RunConfig, run_file: str, engine: str | None, processes: int | None) -> None:
    """Writes errors.json into the output folder. Collective: one call per rank, as train.train."""
    runtime = start(config, run_file, engine, processes)
    with process_group(runtime):
        job = prepare(runtime, config, resume=False)
        expected = load_file(Path(run_file).parent / "reference.safetensors")
        errors = engine_error(job, expected)
        job.log.close()
        if runtime.is_main:
            write_json(job.run_dir / "errors.json", errors)


def engine_error(job, expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors against the reference: the largest of the raw gradients, and of the update. Collective."""
    world, engine, lr = job.runtime.world, job.engine, job.config.optim.lr
    batches = [batch for _, batch in job.data.batches(0, job.plan.steps_per_epoch, world.rank, world.size)]
    before = {name: t.clone() for name, t in engine.weights().items()}
    order, errors = visits(len(batches)), []
    for visit, (step, tokens) in enumerate(order):
        compute_gradients(engine, batches[step], job.objectives[batches[step].source], tokens)
        errors.append(relative_error(engine.gradients(), _of(expected, f"{step}.")))
        engine.apply(lr if visit == len(order) - 1 else 0.0)  # a rate of 0 leaves the weights as they are
    after = engine.weights()
    if world.rank:  # it has no weights, or not all
        return {}
    moved = {name: after[name] - before[name] for name in before}
    return {"gradient": max(errors), "update": relative_error(moved, _of(expected, UPDATE))}


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def relative_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over all parameters as one vector: |got - expected| / |expected|."""
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
