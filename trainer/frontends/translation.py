"""Runs as people ask for them elsewhere, translated into the run file: flags.py, config_json.py, finetuner.py.

What a value may be is the run file's business alone (config.py): here are other names for its keys, other defaults, and
the arithmetic that lies between: a batch per device becomes the global one. Never imports torch.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.texts.tokenizer_rules import position_limit, read_object
from trainer.config.loading import parse_config
from trainer.config.sections import RunConfig
from trainer.config.yaml_reader import override
from trainer.distributed.launcher_claims import OtherWorld, claims
from trainer.model_folder.files import fetch
from trainer.run_dir.layout import SHARDS

PER_DEVICE = 16  # rows, where an entry does not say


@dataclass
class Entry:
    """A run as its entry describes it. datasets: files of records, or one shard folder. notes: lines to say once."""

    config: RunConfig
    datasets: list[Path]
    eval_fraction: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def needs_shards(self) -> bool:
        return not (self.datasets[0] / "manifest.json").is_file()


class Translation:
    """Nested values of the run file, where each of them comes from, and what is wrong with them."""

    def __init__(self, where: str):
        self.where = where
        self.values: dict = {}
        self.places: dict[tuple, int | str] = {}  # run-file key -> line or flag, for messages
        self.stated: dict[str, str] = {}  # run-file key -> what of the entry states it
        self.problems: list[str] = []
        self.notes: list[str] = []

    def put(self, key: str, value: Any, place: int | str | None = None, stated: str | None = None) -> None:
        *parents, last = key.split(".")
        node = self.values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        if place is not None:
            self.places[tuple(key.split("."))] = place
        if stated:
            self.stated[key] = stated

    def whole(self, name: str, value: Any, least: int) -> int:
        """An integer of the entry's own."""
        return self._number(name, value, int, lambda number: number >= least, f"must be a whole number from {least} up")

    def share(self, name: str, value: Any) -> float:
        return self._number(name, value, float, lambda number: 0 <= number < 1, "must be in 0..1, below 1")

    def _number(self, name: str, value: Any, kind: type, fits: Callable, must: str):
        try:
            number = kind(value if isinstance(value, str) else float(value))
            if isinstance(value, bool) or number != float(value) or not fits(number):
                raise ValueError
        except (TypeError, ValueError):
            self.problems.append(f"{name}: {must} (given: {value})")
            return kind(PER_DEVICE) if kind is int else 0.0
        return number

    def batch(self, per_device: int, accumulation: int, names: tuple[str, str], stated: bool) -> None:
        """The global batch: rows per device x accumulation x processes."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        self.put("train.batch_size", per_device * accumulation * world, names[0], names[0] if stated else None)
        self.notes.append(
            f"global batch {per_device} x {accumulation} x {world} = {per_device * accumulation * world} rows "
            f"({names[0]} x {names[1]} x processes)"
        )

    def override(self, texts: Iterable[str]) -> None:
        """Changes to the run file that follow on the command line; none may repeat what the entry states."""
        for text in texts:
            key = text.partition("=")[0]
            if key in self.stated:
                self.problems.append(f"{text}: {self.stated[key]} says so already; keep one of them")
            elif problem := override(self.values, text):
                self.problems.append(problem)
            self.places[tuple(key.split("."))] = f"override {text}"
            if key == "train.batch_size":
                self.notes = [note for note in self.notes if not note.startswith("global batch")]

    def dataset(self, name: str, paths: list[Path]) -> None:
        """Files to be sharded into the run directory, or one shard folder that is taken as it is."""
        for path in paths:
            if not path.exists():
                self.problems.append(f"{name}: {path}: no such file")
        folders = [path for path in paths if (path / "manifest.json").is_file()]
        if folders and len(paths) > 1:
            self.problems.append(f"{name}: {folders[0]} is a shard folder; name it alone, or the files it was made of")
        self.put("data.train", str(folders[0]) if folders else None, stated=name)

    def entry(self, datasets: list[Path], eval_fraction: float = 0.0) -> Entry:
        """Raises BadInput with every problem found."""
        self.values["data"]["train"] = self.values["data"]["train"] or f"{self.values.get('output_dir')}/{SHARDS}"
        config = parse_config(self.values, self.where, self.places, self.problems)
        config, notes = within_positions(config)
        return Entry(config, datasets, eval_fraction, [*self.notes, *notes])


def check_world(processes: int | None) -> None:
    """Raises OtherWorld where more ranks were asked for than came up: the global batch would be another one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for claim in claims(None, processes):
        if claim.processes and claim.processes != world:
            raise OtherWorld(
                f"{claim.by} asked for {claim.processes} process(es), the world has {world}. Nothing was trained. "
                f"Run instead: torchrun --nproc-per-node {claim.processes} -m trainer … with the same flags"
            )


def within_positions(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The lengths cut to the positions that the model has, and a line for it."""
    limit = position_limit(read_object(Path(fetch(config.model.path)) / "config.json"))
    asked = {name: getattr(config.model, name) for name in ("query_max_len", "passage_max_len")}
    long = {name: value for name, value in asked.items() if value and limit and value > limit}
    if not long:
        return config, []
    told = " and ".join(f"{name} {value}" for name, value in long.items())
    model = config.model.model_copy(update=dict.fromkeys(long, limit))
    return config.model_copy(update={"model": model}), [f"the model has {limit} positions: {told} is cut to {limit}"]
