"""The matrix of ways to fine-tune: which cells there are, what the ranks of a group do for one, and what must hold."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F

from tests import tiny
from tests.multiprocess.cells import pairwise
from trainer.config.compatibility import REFUSED

MODES = {
    "full": {},
    "lora": {"finetune": "lora", "lora": {"r": 4, "alpha": 8}},
    "qlora 4": {"finetune": "qlora", "quantization_bits": 4, "lora": {"r": 4, "alpha": 8}},
    "qlora 8": {"finetune": "qlora", "quantization_bits": 8, "lora": {"r": 4, "alpha": 8}},
}
TINY = ("bert", "xlm-r", "modernbert", "qwen3")
FAMILIES = (*TINY, "minilm")  # MiniLM: tests/soak/modes.py, and CI's quickstart and catalogue
BF16_BASE = "model.base_dtype=bf16"
DENSE = "t5-dense"  # with layers behind the pooling
MEAN = ("deberta", "gte")  # with random weights the first token, their embedding otherwise, sees little of the others
GROUPS = (("cpu", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2))
ROWS, EPOCHS, STEPS = 48, 2, 3
LR = {"full": 2e-3, "lora": 1e-2, "qlora 4": 1e-2, "qlora 8": 1e-2}
FASTER = {"minilm": 1 / 20, "modernbert": 3}  # than LR: what changes them in six steps
COSINE = {"full": 0.9999, "lora": 0.9999, "qlora 4": 0.999, "qlora 8": 0.999}


def name_of(mode: str, family: str) -> str:
    return f"{mode}-{family}".replace(" ", "")


def cell(mode: str, family: str, *options: str) -> dict:
    """options: overrides of the run file."""
    return {"kind": "mode", "run": name_of(mode, family), "mode": mode, "family": family, "options": options}


def write_modes(folder: Path, families=FAMILIES, minilm: str | None = None) -> None:
    """Models, shards, and a run file for every mode of every family."""
    shards = tiny.shards(folder / "shards", ROWS, negatives=False)
    for family in families:
        model = _model(folder / "models" / family, family, minilm)
        for mode, settings in MODES.items():
            values = {
                "output_dir": "unused",
                "model": {"path": str(model), "query_max_len": 32, "passage_max_len": 32, **settings},
                "data": {"train": str(shards)},
                "optim": {"lr": LR[mode] * FASTER.get(family, 1), "eps": 1e-6},
                "train": {"batch_size": 16, "epochs": EPOCHS, "micro_batch_tokens": 400},
            }
            (folder / f"{name_of(mode, family)}.json").write_text(json.dumps(values))


def _model(folder: Path, family: str, minilm: str | None) -> Path | str:
    if family == "minilm":
        return minilm
    if family == DENSE:
        return tiny.with_dense(folder, "t5", "mean", [(24, True, "Tanh"), (32, False, "Identity")], normalize=True)
    return tiny.model(folder, family, "mean" if family in MEAN else tiny.FAMILIES[family])


def run_cell(group, cell: dict) -> dict:
    """Trains, resumes from the first checkpoint, exports, loads elsewhere. Collective; the facts are rank 0's."""
    from trainer.config.loading import load_config

    tiny.without_bf16_instructions()
    out = group.out / f"mode{next(group.runs)}"
    whole, resumed = out / "whole", out / "resumed"
    file, options = group.setting / f"{cell['run']}.json", list(cell["options"])
    first = _train(group, load_config(file, [f"output_dir={whole}", *options]), resume=False)
    group.world.on_first(lambda: _cut_back(whole, resumed))
    again = _train(group, load_config(file, [f"output_dir={resumed}", *options]), resume=True)
    if not group.runtime.is_main:
        return {}
    losses, embeddings, counts = first
    return {
        "losses": losses,
        "same_losses": again[0] == losses[STEPS:],
        "same_bytes": _same_bytes(whole / "final", resumed / "final"),
        "counts": counts,
        "cosine": _cosine(whole / "final", embeddings),
        "proved": _proved(whole / "final"),
    }


TEXTS = [row["query"] for row in tiny.rows(8)] + [row["positives"][0] for row in tiny.rows(8)]


def _train(group, config, resume: bool):
    from trainer.distributed.device import DTYPES
    from trainer.distributed.stop import StopRequest
    from trainer.engine.weight_average import averaged
    from trainer.inference.encode import encode
    from trainer.model.build import count_parameters
    from trainer.preflight.inputs import Inputs
    from trainer.train.fit import finish, fit
    from trainer.train.setup import prepare

    group.set_deepspeed(config, gather_all=True)
    runtime = replace(group.runtime, dtype=DTYPES[config.train.precision])
    job = prepare(runtime, Inputs(config), resume)
    before = len(job.log.events("step")) if group.runtime.is_main else 0
    fit(job, StopRequest())
    finish(job)
    with averaged(job.engine):
        embeddings = encode(job.engine, job.model.reader, TEXTS, "", 32)
    counts = count_parameters(job.engine.embedder)
    losses = [event["loss"] for event in job.log.events("step")][before:] if group.runtime.is_main else []
    job.close()
    group.forget()
    return losses, embeddings, counts


def _cut_back(whole: Path, copy: Path) -> None:
    shutil.copytree(whole, copy)
    for name in ("final", f"checkpoint-epoch-{EPOCHS}"):
        shutil.rmtree(copy / name)


def _same_bytes(one: Path, other: Path) -> bool:
    """All files but those that hold the run's own folder or hashes of it."""
    skipped = {"training_config.json", "complete.json"}
    names = [sorted(p.relative_to(f) for f_ in [f] for p in f_.rglob("*") if p.is_file()) for f in (one, other)]
    assert names[0] == names[1], names
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0] if n.name not in skipped)


def _cosine(final: Path, expected: torch.Tensor) -> float:
    """The smallest between the trainer's embeddings and those of a fresh load in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    theirs = torch.tensor(SentenceTransformer(str(final), device="cpu").encode(TEXTS))
    return F.cosine_similarity(expected, theirs).min().item()


def _proved(final: Path) -> str:
    """Proves the folder as trainer.export does: a fresh load against the embeddings that the trainer recorded."""
    from trainer.exporting.fresh_load import embeddings
    from trainer.exporting.proof import prove
    from trainer.inference.probe import read_probe

    return " ".join(prove(final, read_probe(final), load=embeddings))


def problems(result: dict) -> list[str]:
    """Returns the problems of a cell, one line each."""
    cell, wrong = result["cell"], []
    losses, (trained, every) = result["losses"], result["counts"]
    first, last = sum(losses[:STEPS]), sum(losses[-STEPS:])
    if not last < first:
        wrong.append(f"the loss of an epoch went from {first / STEPS:.4f} to {last / STEPS:.4f}")
    if not (result["same_losses"] and result["same_bytes"]):
        wrong.append("resumed, it did not end in the same bytes")
    limit = COSINE["qlora 4" if cell["mode"] == "lora" and BF16_BASE in cell["options"] else cell["mode"]]
    if not result["cosine"] > limit:
        wrong.append(f"cosine {result['cosine']:.6f} in sentence-transformers")
    in_part = cell["mode"] != "full" or any(option.startswith("model.freeze") for option in cell["options"])
    if (trained < every) != in_part or not trained > 0:
        wrong.append(f"{trained} of {every} parameters are trained")
    return [f"{result['engine']}-{result['world']}, {cell['mode']}, {cell['family']}: {text}" for text in wrong]


def differences(results: list[dict]) -> list[str]:
    """Cells that do not give the same losses on two engines, one line each."""
    first: dict[tuple, dict] = {}
    wrong = []
    for result in results:
        key = result["cell"]["run"], *result["cell"]["options"]
        one = first.setdefault(key, result)
        apart = max(abs(a - b) for a, b in zip(one["losses"], result["losses"], strict=True))
        if apart > 1e-4:
            wrong.append(f"{key}: losses on {one['engine']} and {result['engine']} differ by up to {apart:.1e}")
    return wrong


def refused(mode: str, engine: str) -> bool:
    return (mode.replace("qlora 8", "qlora 8 bits").replace("qlora 4", "qlora 4 bits"), engine) in REFUSED


def every_cell(families=FAMILIES) -> dict[tuple[str, int], list[dict]]:
    """The whole matrix by group, without what the trainer refuses."""
    return {
        group: [cell(*pair) for pair in product(MODES, families) if not refused(pair[0], group[0])] for group in GROUPS
    }


def some_cells() -> dict[tuple[str, int], list[dict]]:
    """Returns CI's cells: every pair of mode, family and group, and what ranks gather in another way on two groups.

    That is dense layers, and frozen weights in bf16, which train exactly on every group: test_engines.py.
    """
    chosen: dict[tuple[str, int], list[dict]] = {group: [] for group in GROUPS}
    factors = (tuple(MODES), TINY, GROUPS)
    for mode, family, group in pairwise(factors, lambda one: not refused(one[0], one[2][0])):
        chosen[group].append(cell(mode, family))
    chosen["ddp", 2].append(cell("lora", DENSE))
    chosen["zero3", 2].append(cell("full", DENSE))
    for group in (("cpu", 1), ("zero3", 2)):
        chosen[group].append(cell("lora", "qwen3", BF16_BASE))
    for group in (("zero2", 2), ("zero3", 2)):
        chosen[group].append(cell("full", "bert", BF16_BASE, "model.freeze.layers=1"))
    return chosen
