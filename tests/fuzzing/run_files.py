"""Target: run files, overrides, flat config.json, files of DeepSpeed and accelerate. Accepted ones are read again."""

import json
from pathlib import Path

import yaml
from hypothesis import strategies as st

from data_prep.common.errors import BadInput
from tests.fuzzing.case import Case, Finding
from tests.fuzzing.mutations import Draw, dumps
from trainer.config.compatibility import check_modes, facts
from trainer.config.loading import load_config
from trainer.distributed.deepspeed_json import read_ds_json, zero_engine
from trainer.distributed.launcher_claims import accelerate_claim
from trainer.engine.optimizer import lr_factor
from trainer.frontends.flat_json import from_json, load_run_file

TARGET = "run_files"
RUN = {
    "output_dir": "runs/a",
    "model": {"path": "M", "tokenizer": None, "pooling": "mean", "normalize": True, "query_prompt": "query: ",
    "query_max_len": 64,
              "finetune": "lora", "lora": {"r": 8, "alpha": 16.0, "targets": ["query", "key"], "dropout": 0.1},
              "dropout": 0},
    "data": {"train": "shards", "eval": None, "general": "set", "allow": ["leakage"], "mixing": "temperature",
    "mixing_temperature": 2.0},
    "loss": {"name": {"infonce": 1.0, "cosent": 0.5}, "directions": "gte", "temperature": 0.05,
    "matryoshka": {64: 1.0, 32: 0.5}},
    "sources": {"glossary": {"loss": {"name": "cosent"}, "eval": "set"}, "a.b": {}},
    "optim": {"name": "adamw", "lr": 2e-5, "betas": [0.9, 0.999], "schedule": "cosine", "warmup_ratio": 0.1,
    "ema": 0.99},
    "train": {"batch_size": 64, "epochs": 1, "max_steps": None, "micro_batch_tokens": "auto", "precision": "bf16",
    "seed": 0},
    "checkpoint": {"every_steps": 10, "keep_steps": 2},
    "watch": {"metric": "nDCG@10", "metrics": ["MAP", "recall@5"], "patience": 2},
    "run_name": "r",
}  # fmt: skip
FULL = {
    "output_dir": "o", "model": {"path": "M", "freeze": {"embeddings": True, "layers": 2}}, "data": {"train": "t"},
}  # fmt: skip
FLAT = {
    "model_id": "M", "tokenizer_id": "T", "device": "auto", "dtype": "float32", "train": {"batch_size": 8,
    "epochs": 2, "max_length": 64, "grad_accum_steps": 2},
    "optim": {"name": "AdamW", "lr": 1e-4, "weight_decay": 0.01, "warmup_ratio": 0.1},
    "data": {"pairs_path": "p.jsonl"},
    "output": {"save_dir": "runs", "save_name": "x", "save_metrics": True},
}  # fmt: skip
DEEPSPEED = {
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": "auto",
    "fp16": {"enabled": "auto"},
}  # fmt: skip
ACCELERATE = {
    "distributed_type": "DEEPSPEED", "num_processes": 2, "num_machines": 1, "use_cpu": True,
    "deepspeed_config": {"zero_stage": 2, "deepspeed_config_file": "ds.json"},
}  # fmt: skip
OVERRIDES = [
    "optim.lr=1e-4", "train.epochs=2", "model.finetune=full", "loss.matryoshka=[64, 32]",
    "sources.a.loss.name=cosent", "data.eval=null", "model.lora.r=4", "optim.betas=[0.9,0.99]",
    "model.query_prompt=query: ",
]  # fmt: skip
YAML = [
    "yes", "~", "!!python/object:os.system", "&a [*a]", "*a", "<<: {a: 1}", "1:2", "0o17", "2020-01-01",
    "!!binary aGk=", "? [a]", "- a", "{a: b", "|", ">", "%YAML 1.1", "---", "...", "1e400", ".inf", ".nan", "\t",
    "'", "@", "`", "!!set {a}", "!!int x", "!!float x", "!!timestamp x", "1__0", "0x", "-", "=", "<<", "!!null",
]  # fmt: skip


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    kind = d.pick(["run", "run", "run", "flat", "deepspeed", "accelerate"])
    values = {"run": RUN if not d.chance(4) else FULL, "flat": FLAT, "deepspeed": DEEPSPEED, "accelerate": ACCELERATE}[
        kind
    ]
    for _ in range(d.number(0, 3)):
        values = d.mutated(values) if d.chance(4) else _deeper(d, values)
    overrides = []
    if kind in ("run", "flat"):
        for _ in d.times(2):
            override = d.pick(OVERRIDES)
            overrides.append(
                d.pick(
                    [override, override.partition("=")[0] + "=" + d.pick([d.word(), d.pick(YAML)]), d.damaged(override)]
                )
            )
    name = "run.json" if kind in ("flat", "deepspeed") or (kind == "run" and d.chance(3)) else "run.yaml"
    text = dumps(values, indent=d.pick([None, 2])) if name.endswith("json") or d.chance(3) else _yaml(values)
    if d.chance(4):
        at = d.number(0, len(text))
        text = text[:at] + d.pick(YAML) + text[at:]
    return Case(TARGET, {"kind": kind, "name": name, "overrides": overrides}, {name: d.bytes_of(text)})


def _deeper(d: Draw, values):
    """Returns the values with a change at any key, of any depth alike."""
    paths = [*_paths(values)]
    if not paths:
        return d.mutated(values)
    path = d.pick(paths)

    def at(node, rest):
        if not rest:
            return d.pick(
                [d.value, lambda: d.mutated(node), d.word, lambda: d.pick([None, True, [], {}, "", 0, -1, "1"])]
            )()
        return node | {rest[0]: at(node[rest[0]], rest[1:])}

    return at(values, path)


def _paths(values, prefix=()):
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*prefix, key)
            if len(prefix) < 4:
                yield from _paths(value, (*prefix, key))


def _yaml(values) -> str:
    try:
        return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    except (yaml.YAMLError, RecursionError, ValueError):
        return dumps(values)


def check(case: Case, folder: Path) -> None:
    kind, path = case.data["kind"], folder / case.data["name"]
    try:
        if kind == "deepspeed":
            zero_engine(read_ds_json(str(path)).get("zero_optimization", {}))
            return
        if kind == "accelerate":
            accelerate_claim(["accelerate", "launch", "--config_file", str(path), "-m", "trainer"])
            return
        if kind == "flat":
            entry = from_json(path, case.data["overrides"])
            config = entry and entry.config
        else:
            load_run_file(str(path), case.data["overrides"])
            config = load_config(path, case.data["overrides"])
    except BadInput:
        return
    except OSError as error:  # a name that is too long: an entry point prints it
        if error.errno is None:
            raise
        return
    if config is not None:
        check_config(config, folder)


def check_config(config, folder: Path) -> None:
    """A run file that is accepted is written into run.json and read again as the same run."""
    again = folder / "again.json"
    written = json.dumps(config.model_dump(mode="json"), allow_nan=False, ensure_ascii=False)
    again.write_bytes(written.encode())
    try:
        if load_config(again) != config:
            raise Finding("a run file that was written is read as another run", written)
    except BadInput as error:
        raise Finding("a run file that was written is refused", str(error)) from error
    facts(config)
    for engine in (None, "cpu", "zero3"):
        try:
            check_modes(config, engine)
        except BadInput:
            continue
    config.losses, [config.loss_of(name) for name in config.sources], config.loss.dims, config.model.bits
    if not 0 <= lr_factor(0, 10, config.optim) <= 1:
        raise Finding("a learning rate lies outside of its schedule")
