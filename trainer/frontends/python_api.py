"""Training from Python: EmbedderFineTuner(FineTuningConfig(…)).train(). No torch until then.

In a script that torchrun or accelerate starts, every rank makes the same calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Literal

from data_prep.common.console import say
from data_prep.common.files import check
from trainer.config.sections import COSINE_OF_PAIRS
from trainer.config.unknown_keys import Frontend, answer
from trainer.distributed.launcher_claims import check_launcher, rank
from trainer.frontends.auto_shards import prepare
from trainer.frontends.flags import FLAGS, without_default
from trainer.frontends.translation import PER_DEVICE, Entry, Translation, check_world

KEYS = {  # field of FineTuningConfig -> keys of the run file
    "model_name_or_path": ("model.path",),
    "output_dir": ("output_dir",),
    "num_train_epochs": ("train.epochs",),
    "learning_rate": ("optim.lr",),
    "max_length": ("model.query_max_len", "model.passage_max_len"),
    "steps_per_epoch": ("train.steps_per_epoch",),
    "wandb_run_name": ("run_name",),
    "seed": ("train.seed",),
}
LORA = ("lora_r", "lora_alpha", "lora_dropout")
OF_KEYS = {key: name for name, keys in KEYS.items() for key in keys} | {"data.train": "dataset_path"}


def _stated(key: str, value: str | None) -> str:
    """Returns how a key of the run file is stated in Python."""
    if key == "model.finetune" and value in ("full", "lora"):
        return f"train_adapter={value == 'lora'}"
    if key in OF_KEYS:
        return f"{OF_KEYS[key]}={value}" if value else OF_KEYS[key]
    return f'overrides=["{key}={"…" if value is None else value}"]'


SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")
IN_PYTHON = Frontend(_stated, dict(zip(("batch", "accumulation"), SIZES)))


def _no_unknown_names(config: type) -> type:
    """Makes a dataclass raise BadInput that says how each unknown argument is stated, in place of TypeError."""
    plain = config.__init__
    known = [field.name for field in fields(config)]

    @wraps(plain)
    def init(self, *values, **named):
        unknown = {name: answer((name,), value, known, IN_PYTHON) for name, value in named.items() if name not in known}
        ending = f"The fields are {', '.join(known)}"
        check([f"{config.__name__}: no field {name!r}. {mend or ending}" for name, mend in unknown.items()])
        plain(self, *values, **named)

    config.__init__ = init
    return config


@_no_unknown_names
@dataclass
class FineTuningConfig:
    """A training run, of per_device_train_batch_size x gradient_accumulation_steps x processes rows a step. None: the
    run file's default."""

    model_name_or_path: str
    dataset_path: str | Path  # records (docs/reference/data.md) or a shard folder
    output_dir: str | Path
    train_adapter: bool = True  # LoRA on the frozen model; False trains all weights
    num_train_epochs: int = 1
    learning_rate: float | None = None  # None: by the mode, 1e-4 for adapters, 2e-5 for all weights
    wandb_run_name: str | None = None  # used where WANDB_PROJECT is set
    per_device_train_batch_size: int = PER_DEVICE
    gradient_accumulation_steps: int = 1
    max_length: int | None = None  # tokens, of queries and answers
    steps_per_epoch: int | None = None
    in_batch_negatives: bool = False  # InfoNCE over the batch, whatever the pairs hold; without a loss_fn
    seed: int = 0
    overrides: Sequence[str] = ()  # "section.key=value" of the run file, for what has no field


DEFAULTS = {field.name: field.default for field in fields(FineTuningConfig)}


class EmbedderFineTuner:
    """Trains the model of a config.

    loss_fn: a function of (query_embeds, answer_embeds, batch) of the whole global batch, see user_functions.LossBatch.
    "cosine": (cosine - score)² of each pair, with score 1 where it has none. None: that loss for sources whose pairs
    have scores, InfoNCE over the batch for the others.
    """

    def __init__(self, config: FineTuningConfig, loss_fn: Callable | Literal["cosine"] | None = None):
        self.config, self.loss_fn = config, loss_fn

    def train(self, resume: bool = False) -> Path:
        """Trains and returns the folder of the final model. Raises BadInput with every problem, and Failed."""
        check_launcher()
        entry = self._translate()
        check_world(None)
        if rank() == 0:
            for note in entry.notes:
                say(note)
        run_file = prepare(entry, resume)
        from trainer.train.train import train

        return train(entry.config, str(run_file), resume, loss_fn=self.loss_fn if callable(self.loss_fn) else None)

    def _translate(self) -> Entry:
        run, config = Translation("FineTuningConfig"), self.config
        for name, keys in KEYS.items():
            value = getattr(config, name)
            stated = name if value != DEFAULTS[name] else None
            for key in keys if value is not None else ():
                run.put(key, str(value) if isinstance(value, Path) else value, f"FineTuningConfig.{name}", stated)
        if config.train_adapter:
            run.put("model.finetune", "lora")
            for name in LORA:
                if name not in without_default("lora", config.overrides):
                    run.put(FLAGS[name].key, FLAGS[name].default)
        if name := self._loss_name(run.problems):
            run.put("loss.name", name, "loss_fn")
        run.batch(*(run.whole(name, getattr(config, name), 1) for name in SIZES), SIZES, True)
        datasets = [run.path("FineTuningConfig.dataset_path", config.dataset_path)]
        run.dataset("dataset_path", datasets)
        run.override(config.overrides)
        entry = run.entry(datasets)
        stated = config.in_batch_negatives or any(text.partition("=")[0] == "loss.name" for text in config.overrides)
        return replace(entry, loss_by_scores=self.loss_fn is None and not stated)

    def _loss_name(self, problems: list[str]) -> str | None:
        """Returns the run file's name of the loss; None: the scores decide. A function that cannot be imported gets a
        name that is refused when the run is resumed without it."""
        if self.loss_fn is None:
            return "infonce" if self.config.in_batch_negatives else None
        if isinstance(self.loss_fn, str):
            if self.loss_fn != "cosine":
                mend = f'overrides=["loss.name={self.loss_fn}"] names a loss of the run file'
                problems.append(f'loss_fn={self.loss_fn!r}: must be a function, None or "cosine"; {mend}')
            elif self.config.in_batch_negatives:
                problems.append('loss_fn="cosine" compares each pair alone: leave in_batch_negatives out, or loss_fn')
            return COSINE_OF_PAIRS
        name = getattr(self.loss_fn, "__qualname__", "")
        module = getattr(self.loss_fn, "__module__", "__main__")
        return f"{module}:{name}" if name.isidentifier() else "__main__:loss_fn"
