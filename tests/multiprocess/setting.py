"""Writes the folder that the workers of all groups read: run files and the dense reference."""

import json
from pathlib import Path

import torch

from data_prep.records import Record
from tests import tiny
from tests.multiprocess.cells import (
    ADAPTED,
    CASES,
    FROZEN_NAMES,
    LAST,
    RULES,
    SGD_LR,
    TAU,
    WHOLE,
    Case,
    run_values,
    write_data,
)
from tests.multiprocess.dense import LOSSES, Adapted, Dense, Texts, false_negatives, infonce, relative_error, ruled
from trainer.config.loading import load_config
from trainer.preflight.inputs import Inputs

SOURCES = {"pairs": ("infonce+kl", False), "graded": ("cosent", True)}  # (loss, whether its temperature is learned)
SOURCES_NORM = 11.0  # to clip at


def write_setting(folder: Path) -> dict:
    """Makes <case>.json, sources.json and dense.pt; returns the reference."""
    torch.set_num_threads(1)  # for a tiny model the fastest
    model, data = tiny.model(folder / "bert"), write_data(folder / "data")
    reference: dict = {}
    for name, case in CASES.items():
        values = run_values(model, data[case.data], case.loss, case.max_norm)
        dense = _dense(folder / f"{name}.json", values)
        reference[name] = dense.at_start(name, SGD_LR) | {"adamw": dense.trained_on(name)}
    for name, case in ADAPTED.items():
        reference[name] = _adapted(folder, name, case, model, data[case.data])
    reference["sources"] = _sources(folder, model, data["both"])
    dense = _dense(folder / "infonce.json")
    reference |= {"loads": _loads(dense), "duplicates": _duplicates(dense)}
    reference["rules"] = _rules(folder, dense, run_values(model, data["pairs"], {}, None))
    torch.save(reference, folder / "dense.pt")
    return reference


def _sources(folder: Path, model: Path, data: Path) -> dict:
    """The reference of two sources with losses and prompts of their own, and rows with theirs; no prompt is pooled."""
    values = run_values(model, data, CASES["infonce+kl"].loss, SOURCES_NORM)
    own_loss = {"name": "cosent", "temperature": TAU, "temperature_lr": 0.05}
    values["sources"] = {"graded": {"loss": own_loss, "query_prompt": "w3 w4 "}, "pairs": {"passage_prompt": "w5 "}}
    values["data"] |= {"mixing": "temperature", "row_query_prompt": "w6 {prompt} "}
    values["model"] |= {"query_prompt": "w2 ", "pool_prompt": False}
    dense = _dense(folder / "sources.json", values)
    dense.prompts_of = _prompts_of
    _prompts_matter(dense)
    return dense.trained_on_sources(SOURCES, SOURCES_NORM) | {"max_norm": SOURCES_NORM}


def _prompts_of(record: Record) -> tuple[str, str]:
    stated = record.metadata.get("prompt")
    query = f"w6 {stated} " if stated else "w3 w4 " if record.source == "graded" else "w2 "
    return query, "w5 " if record.source == "pairs" else ""


def _prompts_matter(dense: Dense) -> None:
    """Makes sure that a run without the prompts, or with their tokens pooled, would have other embeddings."""
    texts = [(_prompts_of(record)[0], record.query) for record in dense.rows.take(list(range(6)))]
    others = [[("", text) for _, text in texts], [("", prompt + text) for prompt, text in texts]]
    with torch.no_grad():
        assert all((dense.embed(texts) - dense.embed(other)).norm(dim=1).min() > 0.01 for other in others)


def _adapted(folder: Path, name: str, case: Case, model: Path, data: Path) -> dict:
    """The reference where weights are frozen. base_matters: relative error of its gradient with a base in fp32."""
    values = run_values(model, data, case.loss, case.max_norm)
    values["model"] |= case.model
    start = None
    if "freeze" not in case.model:
        start = tiny.adapter(folder / f"{name}-adapter", model, dora=name.startswith("dora"))
        values["model"] |= {"finetune": "lora", "lora": {"start": str(start)}}
    in_fp32 = _dense(folder / f"{name}.json", values, start).at_start(name, SGD_LR)
    dense = _dense(folder / f"{name}.json", values, start)
    if "base_dtype" in case.model:
        dense.round_frozen()
    found = dense.at_start(name, SGD_LR) | {"adamw": dense.trained_on(name)}
    return found | {"base_matters": relative_error(in_fp32["whole"]["gradient"], found["whole"]["gradient"])}


def _dense(run_file: Path, values: dict | None = None, adapter: Path | None = None) -> Dense:
    if values:
        run_file.write_text(json.dumps(values))
    config = load_config(run_file)
    inputs = Inputs(config)
    rows, plan = inputs.shards.split("train"), inputs.plan
    if adapter:
        return Adapted(config.model.path, rows, plan, adapter)
    frozen = FROZEN_NAMES if "freeze" in (values or {}).get("model", {}) else ()
    return Dense(config.model.path, rows, plan, frozen)


def _rules(folder: Path, dense: Dense, values: dict) -> dict:
    """Gradients under every rule, and what a test of it stands on: `matters`, the relative error where the rule's mask
    is left out, and `nearest`, how near a similarity comes to its limit. Writes guided.json, a run with the guide."""
    guide = tiny.model(folder / "guide", "qwen2", "mean")  # its tokens are byte pairs
    values["loss"] |= {"guide": {"model": str(guide)}}
    (folder / "guided.json").write_text(json.dumps(values))
    guiding, found = Dense(guide, dense.rows, dense.plan), {}
    for name, loss in RULES.items():
        if "guide" in loss:
            loss = loss | {"guide": loss["guide"] | {"model": str(guide)}}
        bare = {key: value for key, value in loss.items() if key not in ("guide", "mask_margin")}
        found[name] = {"loss": loss}
        for kind, size in (("whole", WHOLE), ("last", LAST)):
            step = dense.step_with(size, hard=True)
            ids = dense.plan.batch(step)[1].tolist()
            with torch.no_grad():
                guided = Texts(guiding.embed, dense.rows.take(ids), ids)
            value, masked, nearest = ruled(dense.texts(ids), guided, TAU, loss)
            gradient = dense.gradient(value)
            unruled = dense.gradient(ruled(dense.texts(ids), guided, TAU, bare)[0])
            matters = relative_error(unruled, gradient)
            found[name][kind] = {
                "step": step, "gradient": gradient, "masked": masked, "nearest": nearest, "matters": matters,
            }  # fmt: skip
    return found


def _loads(dense: Dense) -> dict:
    """Rows sorted by length, longest first, that have long and short texts only; the gradient of two losses."""
    lengths = [len(" ".join([r.query, *r.positives, *r.negatives]).split()) for r in dense.rows]
    ids = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ids = ids[: WHOLE - 6] + ids[-6:]
    gradients = {name: dense.gradient(LOSSES[name](dense.texts(ids), TAU)) for name in ("infonce+kl", "user")}
    return {"ids": ids, **gradients}


def _duplicates(dense: Dense) -> dict:
    """Records with planted duplicates. twins: pairs of rows of which neither has a negative."""
    one, two, three, four, five = (" ".join(tiny.WORDS[i : i + 6]) for i in range(0, 30, 6))
    far = " ".join(tiny.WORDS[100:110])
    rows = {
        "text": [("w1 w2", [one], [one.upper()], ["a"]), ("w7", [one.upper()], [], ["b"])],
        "document": [("w1 w2", [one], [], ["a"]), ("w7", [two], [], ["a"])],
        "query": [("w1 w2", [one], [], ["a"]), ("W1  w2", [two], [], ["b"])],
    }
    mixed = [
        ("w1", [one], [two.upper(), far], ["a"]),
        ("w8", [two, three], [], ["b", "c"]),
        ("w2", [one.upper()], [five], ["d"]),
        ("w9", [four], [], ["c"]),
        ("w1", [far], [], ["e"]),
        ("w30", [five], [three, five], ["f"]),
    ]
    made = [Record(*row[:3], doc_ids=row[3]) for row in mixed]
    texts = Texts(dense.embed, made, list(range(len(made))))
    gradients = {"infonce, no mask": ("query_to_doc", False, dense.gradient(infonce(texts, TAU, masked=False)))}
    for name, directions in (("infonce", "query_to_doc"), ("symmetric", "symmetric"), ("gte", "gte")):
        texts = Texts(dense.embed, made, list(range(len(made))))
        gradients[name] = (directions, True, dense.gradient(LOSSES[name](texts, TAU)))
    return {
        "twins": {name: [_values(*row) for row in pair] for name, pair in rows.items()},
        "mixed": {
            "records": [_values(*row) for row in mixed],
            "gradients": gradients,
            "masked": int(false_negatives(texts).sum()),
            "mask_matters": relative_error(gradients["infonce, no mask"][2], gradients["infonce"][2]),
        },
    }


def _values(query: str, positives: list[str], negatives: list[str], doc_ids: list[str]) -> dict:
    return {"query": query, "positives": positives, "negatives": negatives, "doc_ids": doc_ids}
