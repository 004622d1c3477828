"""The table of the promise: its factors, which of its cells CI runs, and the data and run files they need."""

import json
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

from data_prep.reading.retrieval_sets import RetrievalSet
from tests import tiny

STEPS = 20  # of clipped AdamW
LR, SGD_LR, TAU, TEMPERATURE_LR = 1e-3, 0.1, 0.05, 0.05
WHOLE, LAST = 16, 2  # rows of a batch; 82 rows leave a last one of 2: none for a third rank
ROWS = 82


@dataclass(frozen=True)
class Case:
    """loss, model: of the run file. max_norm: a clipping norm that acts in some steps and not in others."""

    loss: dict
    max_norm: float
    data: str = "pairs"
    model: dict = field(default_factory=dict)


USER = "tests.multiprocess.user_loss:pull_and_push"
CASES = {
    "infonce": Case({}, 8.0),
    "symmetric": Case({"directions": "symmetric"}, 5.0),
    "gte": Case({"directions": "gte"}, 20.0),
    "cosent": Case({"name": "cosent"}, 10.0, "graded"),
    "cosine": Case({"name": "cosine"}, 2.0, "graded"),
    "infonce+kl": Case({"name": {"infonce": 1.0, "kl": 0.5}, "teacher_temperature": 2.0}, 15.0),
    "margin_mse": Case({"name": "margin_mse"}, 3.0),
    "matryoshka": Case({"matryoshka": {32: 1.0, 16: 0.5, 8: 0.25}}, 25.0),
    "user": Case({"name": USER}, 8.0),
    "learned temperature": Case({"temperature_lr": TEMPERATURE_LR}, 5.0),
}
# Adapters in place of all weights, frozen layers, frozen weights in bf16: a few cells more, outside the table.
IN_BF16 = {"base_dtype": "bf16"}
FROZEN, FROZEN_NAMES = {"freeze": {"embeddings": True, "layers": 1}}, ("embeddings.", "encoder.layer.0.")
ADAPTED = {
    "lora": Case({}, 2.5),
    "dora": Case({}, 2.5),
    "lora, bf16 base": Case({}, 2.5, model=IN_BF16),
    "dora, bf16 base": Case({}, 2.5, model=IN_BF16),
    "frozen layers in bf16": Case({}, 0.75, model=FROZEN | IN_BF16),
}
_BASE_GROUPS = (("cpu", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2))
ADAPTED_GROUPS = {
    "lora": _BASE_GROUPS,
    "dora": (("cpu", 1), ("ddp", 3), ("zero1", 2)),
    "lora, bf16 base": _BASE_GROUPS,
    "dora, bf16 base": _BASE_GROUPS,
    "frozen layers in bf16": _BASE_GROUPS,
}
# Rules about negatives: all in one job of a group, outside the table. Margins lie among the random models' cosines.
GUIDED = {"model": "GUIDE", "margin": 0.01}
RULES = {
    "own negatives": {"negatives": "own", "mask_margin": -0.01},
    "masked above the positive": {"mask_margin": -0.01},
    "guide": {"guide": GUIDED},
    "guide, gte": {"guide": GUIDED, "directions": "gte"},
    "guide, own negatives, user": {"guide": GUIDED, "negatives": "own", "name": {"infonce": 1.0, USER: 0.5}},
}
WORLDS = (1, 2, 3)
ENGINES = ("ddp", "zero1", "zero2", "zero3")  # ddp with one rank: the one-process engine
CHUNKS = ("1 chunk", "4 chunks", "4 kept")
FACTORS = (WORLDS, ENGINES, CHUNKS, tuple(CASES))


def engine_name(engine: str, world: int) -> str:
    return "cpu" if engine == "ddp" and world == 1 else engine


def pairwise(factors=FACTORS, allowed=lambda cell: True, cost=lambda cell: 0) -> list[tuple]:
    """Cells that hold every pair of values of two factors: greedy, always the first that adds most pairs.

    allowed: which cells there are; the number of all cells must not divide by 7 or 11. cost: of two that add as many
    pairs, the cheaper one is taken.
    """

    def pairs(cell: tuple) -> set:
        return set(combinations(enumerate(cell), 2))

    every, chosen = list(product(*factors)), []
    cells = [every[77 * i % len(every)] for i in range(len(every))]  # mixed: else the first engine would take most
    cells = [cell for cell in cells if allowed(cell)]
    open_pairs = set().union(*map(pairs, cells))
    while open_pairs:
        chosen.append(max(cells, key=lambda cell: (len(pairs(cell) & open_pairs), -cost(cell))))
        open_pairs -= pairs(chosen[-1])
    return sorted(chosen, key=every.index)


def work(cell: tuple) -> int:
    """Returns about what a cell of the table costs: DeepSpeed's Python runs on every rank, most of it under ZeRO-3."""
    world, engine, _, _ = cell
    return world * {"ddp": 1, "zero3": 5}.get(engine, 2)


def groups() -> list[tuple[str, int]]:
    """(engine, ranks) of every process group."""
    return [(engine_name(engine, world), world) for engine, world in product(ENGINES, WORLDS)]


def some_cells() -> dict[tuple[str, int], list[dict]]:
    """Returns CI's cells: every pair of values; in each group one cell that also trains, each loss in turn."""
    cells: dict[tuple[str, int], list[dict]] = {group: [] for group in groups()}
    for world, engine, chunks, name in pairwise(cost=work):
        cells[engine_name(engine, world), world].append(table_cell(name, chunks))
    trained = dict.fromkeys(CASES, 0)
    for group in cells.values():
        first = min(group, key=lambda cell: trained[cell["run"]])
        first |= {"adamw": True, "planted": True}
        trained[first["run"]] += 1
    next(cell for cell in cells["zero3", 3] if cell["adamw"])["trained_in"] = "1 chunk"  # in four: with two ranks
    for group in (("cpu", 1), ("ddp", 2), ("ddp", 3)):  # the same temperature with any number of ranks
        if not any(cell["adamw"] and cell["run"] == "learned temperature" for cell in cells[group]):
            cells[group].append(table_cell("learned temperature", "4 chunks", adamw=True))
    for name, groups_of_it in ADAPTED_GROUPS.items():
        for i, group in enumerate(groups_of_it):
            cells[group].append(adapter_cell(name, CHUNKS[i % len(CHUNKS)], adamw=i == 0, planted=i < 2))
    return cells


def all_cells() -> dict[tuple[str, int], list[dict]]:
    """The whole table; wrong factors are planted with one way to chunk."""
    made = [
        table_cell(name, chunks, adamw=True, planted=chunks == "4 chunks") for chunks, name in product(CHUNKS, CASES)
    ]
    made += [adapter_cell(name, chunks) for chunks, name in product(CHUNKS, ADAPTED)]
    return dict.fromkeys(groups(), made)


def table_cell(name: str, chunks: str, adamw: bool = False, planted: bool = False) -> dict:
    return {"kind": "table", "run": name, "chunks": chunks, "adamw": adamw, "planted": planted}


def adapter_cell(name: str, chunks: str, adamw: bool = True, planted: bool = True) -> dict:
    return table_cell(name, chunks, adamw, planted) | {"kind": "adapter"}


def retrieval_set() -> RetrievalSet:
    """45 documents, five of them equal to others, and 12 queries, two of which have the id of a document."""
    texts = [text for row in records(False, 40) for text in (row["positives"][0], row["query"])]
    documents, queries = texts[:40] + texts[:5], texts[40:52]
    doc_ids, query_ids = [f"d{i * 7 % 45:02}" for i in range(45)], ["d00", "d07", *(f"q{i}" for i in range(10))]
    qrels = {query: {doc_ids[i]: 1} for i, query in enumerate(query_ids)}
    return RetrievalSet("s", doc_ids, documents, query_ids, queries, qrels, ignore_identical_ids=True)


def records(scored: bool, count: int = ROWS) -> list[dict]:
    """Rows with ragged hard negatives, each with teacher scores or (scored) a graded similarity."""
    made = tiny.rows(count, seed=len(tiny.WORDS) + scored)
    for i, row in enumerate(made):
        if i % 3 == 0:
            row["prompt"] = f"w{i} w8"  # read where a run asks for it
        if scored:
            row |= {"score": (i * 37 % 11) / 10, "id": f"s{i}", "doc_ids": [f"s{i}"]}
        else:
            row["teacher_scores"] = [(i * 7 + k * 13) % 10 / 4 for k in range(1 + len(row["negatives"]))]
    return made


def write_data(folder: Path) -> dict[str, Path]:
    """Shard folders by name: pairs, graded, and both as the sources of one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, scored in (("pairs", False), ("graded", True)):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in records(scored)))
    return {
        "pairs": _shard(folder / "pairs", files["pairs"]),
        "graded": _shard(folder / "graded", files["graded"]),
        "both": _shard(folder / "both", *files.values()),
    }


def _shard(target: Path, *files: Path) -> Path:
    from data_prep.__main__ import main

    assert main(["shard", *map(str, files), "--output", str(target), "--eval-fraction", "0"]) == 0
    return target


def run_values(model: Path, data: Path, loss: dict, max_norm: float | None, **more) -> dict:
    """A run file's content."""
    return {
        "output_dir": "unused",
        "model": {"path": str(model)},
        "data": {"train": str(data)},
        "loss": {"temperature": TAU, **loss},
        "optim": {"lr": LR, "eps": 1e-6, "max_grad_norm": max_norm},
        "train": {"batch_size": WHOLE, "epochs": 10, "max_steps": STEPS, "micro_batch_tokens": 200},
        **more,
    }
