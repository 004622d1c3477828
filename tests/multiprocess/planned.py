"""Measures what a rank takes, to compare `launch plan` with: bytes of tensors, growth of the process, collectives."""

import gc
import json
import statistics
import time
from pathlib import Path

import torch

from trainer.preflight.inputs import Inputs
from trainer.train.setup import prepare
from trainer.train.step import compute_gradients

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


BUCKET = 4 * 500_000_000  # of DeepSpeed: pages that nothing was written to, so no memory


def tensor_bytes() -> int:
    """Returns the bytes of all storages that tensors of this process hold, without DeepSpeed's bucket."""
    gc.collect()
    held = {}
    for thing in gc.get_objects():
        # isinstance would ask every lazy module for its class; DeepSpeed keeps shapes as tensors without data
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            held[storage._cdata] = storage.nbytes()
    return sum(size for size in held.values() if size != BUCKET)


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def run_cell(group, cell: dict) -> dict:
    """Steps of a run as the trainer makes it, two unless the cell says more; the largest figures of all ranks."""
    from trainer.config.loading import load_config

    config = load_config(
        group.setting / f"{cell['run']}.json", [f"output_dir={group.out / f'p{next(group.runs)}'}", *cell["options"]]
    )
    if group.runtime.engine in ("zero1", "zero2", "zero3"):
        plugin = group.runtime.accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["gradient_clipping"] = config.optim.max_grad_norm or 0.0
    empty = tensor_bytes()
    job = prepare(group.runtime, Inputs(config), resume=False)
    found = {}
    batches = [batch for _, batch in job.data.batches(0, cell.get("steps", 2), group.world.rank, group.world.size)]
    seconds = []
    for parameter in job.engine.embedder.parameters():
        parameter.detach().sum()  # weights that nothing was done with yet lie in the file, not in memory
    before = resident("VmRSS")
    CLEAR.write_text("5")  # the most from here on
    for batch in batches:
        group.world.barrier()
        calls, sent, began = group.world.calls, group.world.sent, time.perf_counter()
        stats = compute_gradients(job.engine, batch, job.objectives[batch.source], job.micro_batch_tokens)
        found |= {"calls": group.world.calls - calls, "sent": group.world.sent - sent}
        job.engine.apply(1e-5)
        seconds.append(time.perf_counter() - began)
    found["microseconds"] = int(1e6 * statistics.median(seconds[1:]))
    found["growth"] = resident("VmHWM") - before
    for parameter in job.engine.named.values():
        parameter.grad = None
    found["state"] = tensor_bytes() - empty
    numbers = group.world.gather_ints(list(found.values())).amax(dim=0).tolist()
    found = dict(zip(found, numbers)) | {
        "negatives": stats.values["negatives_per_query"] + stats.values["masked_negatives"] / batch.global_rows,
        "steps": job.total_steps,
        "tokens": [sum(len(ids) for ids in batch.tokens) for batch in batches],
    }
    job.log.close()
    group.forget()
    return json.loads(json.dumps(found))


STATE, GROWTH = 0.05, 0.15  # relative errors of what is predicted
MODES = {"full": {}, "lora": {"finetune": "lora"}, "qlora": {"finetune": "qlora"}}


def write_planned(folder: Path, model: Path, length: int = 32, rows: int = 64, batch: int = 32) -> None:
    """A run file for every mode of a model."""
    from tests import tiny

    shards = tiny.shards(folder / "shards", rows)
    for mode, values in MODES.items():
        made = {
            "output_dir": "unused",
            "model": {"path": str(model), "query_max_len": length, "passage_max_len": length, **values},
            "data": {"train": str(shards)},
            "train": {"batch_size": batch, "micro_batch_tokens": 2048, "device": "cpu"},
        }
        (folder / f"{mode}.json").write_text(json.dumps(made))


def bert(folder: Path, layers: int, size: int, vocabulary: int = 4000) -> Path:
    """A BERT with random weights and tiny.WORDS' tokenizer."""
    import transformers as tf

    from tests import tiny

    torch.manual_seed(0)
    heads = {"num_attention_heads": size // 64, "intermediate_size": 4 * size, "max_position_embeddings": 512}
    made = tf.BertModel(tf.BertConfig(vocab_size=vocabulary, hidden_size=size, num_hidden_layers=layers, **heads))
    tiny.model(folder)  # its tokenizer and sentence-transformers' files
    made.save_pretrained(folder)
    return folder


def predicted(run_file: Path, options: tuple, engine: str, ranks: int, machine: str | None = None) -> dict:
    """Returns the figures of `launch plan`, by the names of run_cell's. machine: what `doctor --measure` wrote."""
    from launch.plan.estimate import Candidate, Ranks, estimate, look
    from launch.plan.hardware import of_cpu, of_machine
    from trainer.config.loading import load_config

    config = load_config(run_file, list(options))
    outlook = look(config, Ranks(1, ranks, "cpu", 2**40))
    candidate = Candidate(engine, config.train.gradient_checkpointing, config.model.bits)
    hardware = of_machine(machine, "cpu") if machine else of_cpu(2, ranks)
    found = estimate(outlook, outlook.variants[0], candidate, hardware)
    return {
        "state": found.need.state,
        "growth": found.need.total - found.need.weights - round(MADE_BEFORE.get(engine, 0) * found.need.optimizer),
        "calls": found.calls,
        "sent": found.sent,
        "negatives": outlook.negatives[:2],
        "steps": outlook.steps,
        "seconds": found.seconds.total,
    }


# of the optimizer's bytes, what is there before the first step: the copy of the weights, ZeRO-3's share of the gradient
MADE_BEFORE = {"zero1": 1 / 3, "zero2": 1 / 3, "zero3": 1 / 2}


def problems(result: dict, plan: dict, growth: bool = False) -> list[str]:
    """Returns where the plan was wrong, one line each. growth: compare it too, in a process of its own only."""
    wrong = []
    for name, limit in (("state", STATE), *((("growth", GROWTH),) if growth else ())):
        if not abs(plan[name] / result[name] - 1) < limit:
            wrong.append(f"{name}: {plan[name] / 1e6:.1f} MB planned, {result[name] / 1e6:.1f} MB found")
    if plan["calls"] != result["calls"]:
        wrong.append(f"{plan['calls']} collectives planned, {result['calls']} made")
    if plan["negatives"][-1] != round(result["negatives"]) or plan["steps"] != result["steps"]:
        wrong.append(f"negatives and steps: {plan['negatives']}, {plan['steps']} planned, {result}")
    if result["engine"] == "ddp" and not abs(plan["sent"] / max(1, result["sent"]) - 1) < 0.02:
        wrong.append(f"{plan['sent']} bytes to send planned, {result['sent']} sent")
    where = f"{result['engine']}-{result['world']}, {result['cell']['run']}"
    return [f"{where}: {text}" for text in wrong]
