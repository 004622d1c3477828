"""Translation of flags, flat JSON and Python into the run file. No torch.

- The frontends know other names for the run file's keys, and other defaults.
- A batch per device becomes the global batch.
- The run file alone validates values.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.paths import user_path
from data_prep.texts.tokenizer_rules import position_limit, read_object
from trainer.config.loading import parse_config, with_eval_off
from trainer.config.sections import RunConfig
from trainer.config.yaml_reader import override
from trainer.distributed.launcher_claims import OtherWorld, claims, world_size
from trainer.model_folder.files import fetch
from trainer.run_dir.layout import SHARDS

PER_DEVICE = 16  # rows, where an entry does not say


@dataclass
class Entry:
    """A run as a frontend describes it."""

    config: RunConfig
    datasets: list[Path]  # files of records, or one shard folder
    eval_fraction: float = 0.0  # share of the documents
    notes: list[str] = field(default_factory=list)  # lines to print once
    loss_by_scores: bool = False  # the shards decide the loss (loss_by_scores.py)

    @property
    def needs_shards(self) -> bool:
        return not (self.datasets[0] / "manifest.json").is_file()


class Translation:
    """Nested values of the run file, the origin of each, and the problems among them."""

    def __init__(self, where: str):
        self.where = where
        self.values: dict = {}
        self.origins: dict[tuple, int | str] = {}  # run-file key -> line or flag, for messages
        self.stated: dict[str, str] = {}  # run-file key -> the name under which the user stated it
        self.problems: list[str] = []
        self.batch_note: str | None = None  # the global batch's arithmetic; None: an override states the batch
        self.notes: list[str] = []

    def put(self, key: str, value: Any, origin: int | str | None = None, stated: str | None = None) -> None:
        *parents, last = key.split(".")
        node = self.values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        if origin is not None:
            self.origins[tuple(key.split("."))] = origin
        if stated:
            self.stated[key] = stated

    def whole(self, name: str, value: Any, least: int) -> int:
        """Returns a value of the frontend's own as an integer; a problem is recorded."""
        return self._number(name, value, int, lambda number: number >= least, f"must be a whole number from {least} up")

    def share(self, name: str, value: Any) -> float:
        """Returns a value of the frontend's own as a share; a problem is recorded."""
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
        """Sets the global batch: rows per device x accumulation x processes."""
        world = world_size()
        rows = per_device * accumulation * world
        self.put("train.batch_size", rows, names[0], names[0] if stated else None)
        self.batch_note = (
            f"global batch {per_device} x {accumulation} x {world} = {rows} rows ({names[0]} x {names[1]} x processes)"
        )

    def override(self, texts: Iterable[str]) -> None:
        """Applies the overrides of the run file; none may repeat what the user stated otherwise."""
        for text in texts:
            key = text.partition("=")[0]
            if key in self.stated:
                self.problems.append(f"{text}: {self.stated[key]} says so already; keep one of them")
            elif problem := override(self.values, text):
                self.problems.append(problem)
            self.origins[tuple(key.split("."))] = f"override {text}"
            if key == "train.batch_size":
                self.batch_note = None

    def path(self, name: str, value: str | Path) -> Path:
        """Returns a path of the frontend's own with its home folder; a problem is recorded."""
        try:
            return user_path(value)
        except BadInput as error:
            self.problems += [f"{name}: {problem}" for problem in error.problems]
            return Path(value)

    def dataset(self, name: str, paths: list[Path]) -> None:
        """Sets the training data: files to shard into the run directory, or one shard folder."""
        for path in paths:
            if not path.exists():
                self.problems.append(f"{name}: {path}: no such file")
        folders = [path for path in paths if (path / "manifest.json").is_file()]
        if folders and len(paths) > 1:
            self.problems.append(f"{name}: {folders[0]} is a shard folder; name it alone, or the files it was made of")
        self.put("data.train", str(folders[0]) if folders else None, stated=name)

    def entry(self, datasets: list[Path], eval_fraction: float = 0.0) -> Entry:
        """Returns the validated run. Raises BadInput with every problem."""
        self.values["data"]["train"] = self.values["data"]["train"] or f"{self.values.get('output_dir')}/{SHARDS}"
        config = parse_config(with_eval_off(self.values), self.where, self.origins, self.problems)
        config, notes = within_positions(config)
        return Entry(config, datasets, eval_fraction, [*filter(None, [self.batch_note]), *self.notes, *notes])


def check_world(processes: int | None) -> None:
    """Raises OtherWorld if the launcher started another number of ranks than planned: the global batch would differ."""
    world = world_size()
    for claim in claims(None, processes):
        if claim.processes and claim.processes != world:
            raise OtherWorld(
                f"{claim.by} asked for {claim.processes} process(es), the world has {world}. Nothing was trained. "
                f"Run instead: torchrun --nproc-per-node {claim.processes} -m trainer … with the same flags"
            )


def within_positions(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Limits the lengths to the model's positions; returns the config and a note for each change."""
    limit = position_limit(read_object(Path(fetch(config.model.path)) / "config.json"))
    lengths = {name: getattr(config.model, name) for name in ("query_max_len", "passage_max_len")}
    long = {name: value for name, value in lengths.items() if value and limit and value > limit}
    if not long:
        return config, []
    named = " and ".join(f"{name} {value}" for name, value in long.items())
    model = config.model.model_copy(update=dict.fromkeys(long, limit))
    return config.model_copy(update={"model": model}), [f"the model has {limit} positions: {named} is cut to {limit}"]
