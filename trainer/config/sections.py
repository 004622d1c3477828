"""Sections of the run file: every fact that decides what is learnt. Topology is the launcher's. No torch."""

import json
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)  # fmt: skip

from data_prep.common.paths import expanded
from data_prep.texts.prompts import SIDES, OwnPrompts
from data_prep.texts.row_prompts import read_row_prompt
from trainer.config.other_trainers import about_value

UserPath = Annotated[str, AfterValidator(expanded)]  # `~` is the home folder


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`epochs: yes` would be read as 1: YAML's truth values are numbers to Python."""
        if isinstance(value, bool) and not _may_be_bool_or_section(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"{str(value).lower()} is no number or text")
        return value


def _may_be_bool_or_section(annotation: Any) -> bool:
    kinds = (annotation, *getattr(annotation, "__args__", ()))
    return any(kind is bool or (isinstance(kind, type) and issubclass(kind, Section)) for kind in kinds)


class LoraConfig(Section):
    """Adapters (Hu et al. 2021, arXiv:2106.09685): W + s B A, with A (r, in), B (out, r) and s = alpha / r.

    targets: linear layers by name; None takes those of the family (model_folder/families.py). rslora: s = alpha /
    sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732). dora: the norms of W's rows are trained apart (Liu et al. 2024,
    arXiv:2402.09353). start: an adapter folder to go on from; it says r, alpha, targets, rslora and dora.
    """

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] | None = None
    rslora: bool = False
    dora: bool = False
    start: UserPath | None = None

    @model_serializer(mode="wrap")
    def _as_stated(self, plain):
        """Leaves out what the adapter to start from decides: defaults would contradict it when run again."""
        decided = ("r", "alpha", "targets", "rslora", "dora") if self.start else ()
        return {key: value for key, value in plain(self).items() if key not in decided}


class FreezeConfig(Section):
    """Parts that full fine-tuning leaves as they are: the embeddings, and the first `layers` transformer blocks."""

    embeddings: bool = False
    layers: int = Field(0, ge=0)


class ModelConfig(Section):
    """The model, and its trained part. None: what the model folder's own files say."""

    path: UserPath = Field(min_length=1)
    tokenizer: UserPath | None = None  # folder or hub id; None: that of `path`
    pooling: Literal["mean", "cls", "last", "weighted_mean"] | None = None
    normalize: bool | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    pool_prompt: bool | None = None  # False: a text's embedding is pooled without the tokens of its prompt
    query_max_len: int | None = Field(None, ge=4)
    passage_max_len: int | None = Field(None, ge=4)
    append_eos: bool = False  # also where the tokenizer does not by itself
    bidirectional: bool | None = None  # a decoder's tokens see those behind them too
    dropout: Literal[0, "model"] = 0  # "model": as the folder was trained
    trust_remote_code: bool = False
    finetune: Literal["full", "lora", "qlora"] = "full"
    lora: LoraConfig = LoraConfig()
    base_dtype: Literal["fp32", "bf16", "auto"] = "auto"  # of frozen weights; auto: bf16 on a GPU that computes in bf16
    quantization_bits: Literal[4, 8] | None = None  # of qlora's base; None: 4
    freeze: FreezeConfig = FreezeConfig()

    @property
    def bits(self) -> int | None:
        """Bits of the quantised base; None: not quantised."""
        return (self.quantization_bits or 4) if self.finetune == "qlora" else None

    @model_validator(mode="after")
    def _sections_that_count(self):
        if self.finetune == "full" and self.lora != LoraConfig():
            raise ValueError("lora: is set, but finetune is full; set finetune to lora or qlora, or leave lora out")
        if self.finetune != "qlora" and self.quantization_bits:
            raise ValueError(f"quantization_bits: is set, but finetune is {self.finetune}; only qlora quantises")
        if self.base_dtype == "bf16" and self.finetune == "full" and self.freeze == FreezeConfig():
            raise ValueError("base_dtype: is bf16, but no weight is frozen (trained weights are fp32); leave it out")
        if isinstance(self.lora.targets, list) and not self.lora.targets:
            raise ValueError("lora.targets: is empty; name linear layers, or all-linear")
        return self


def _set_or_off(value: Any) -> Any:
    """Returns False for the ways to write that there is no evaluation set, else the value: a path, or None."""
    if value is False or value in ([], {}) or (isinstance(value, str) and value.strip().lower() in _NO_SET):
        return False
    if value is None or isinstance(value, str):
        return value
    raise ValueError("must be the path of an evaluation set; leave it out for the eval split, null turns it off")


_NO_SET = ("", "none", "null", "off", "no", "false")
# never True: _set_or_off refuses it
EvalSet = Annotated[UserPath | bool | None, BeforeValidator(_set_or_off)]
ExtraSet = Annotated[UserPath | bool | None, BeforeValidator(lambda value: _set_or_off(value) or None)]


def _names_a_key(text: str) -> str:
    read_row_prompt(text)
    return text


RowKey = Annotated[str, AfterValidator(_names_a_key)]  # BadInput is a ValueError


class DataConfig(Section):
    """The data. eval: a shard folder or a retrieval set; None takes the eval split of `train`, if there is one; False
    turns its evaluation off (a run file says null, see loading.py)."""

    train: UserPath = Field(min_length=1)
    eval: EvalSet = None
    fraction: float = Field(1.0, gt=0, le=1)  # of the documents of `train`, drawn by train.seed: see shards/fraction.py
    general: ExtraSet = None  # a set beside the domain's, to see what is forgotten
    ignore_identical_ids: bool = False  # in evaluations, the document with the query's own id (BEIR's rule)
    max_hard_negatives: int | None = Field(None, ge=0)  # per row; None takes all
    negative_sampling: Literal["random", "first"] = "random"  # of these: others in each epoch, or always the first
    # a row's own prompt: a key of its metadata, or a text with one {key}
    row_query_prompt: RowKey | None = None
    row_passage_prompt: RowKey | None = None
    last_batch: Literal["keep", "drop"] = "keep"
    mixing: Literal["proportional", "temperature", "round_robin"] = "proportional"  # of sources; a batch is of one
    allow: list[Literal["leakage", "positives_as_negatives"]] = []  # what the gate finds and does not refuse
    mixing_temperature: float = Field(2.0, gt=0)  # "temperature" takes a source in proportion to rows ** (1 / this)

    @model_serializer(mode="wrap")
    def _as_written(self, plain):
        """Leaves out an `eval` that is not stated: as null it would turn evaluation off when it is read again."""
        return {key: value for key, value in plain(self).items() if key != "eval" or value is not None}


class Directions(NamedTuple):
    """Similarities that a row's InfoNCE softmax runs over, see loss/info_nce.py."""

    compared: tuple[str, ...]  # of SIMILARITIES
    joint: bool  # one softmax over all of them, else one each


SIMILARITIES = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = {
    "query_to_doc": Directions(("query_to_doc",), joint=False),
    "symmetric": Directions(("query_to_doc", "doc_to_query"), joint=False),
    "gte": Directions(SIMILARITIES, joint=True),
}
LOSSES = ("infonce", "cosine", "cosent", "kl", "margin_mse")
COSINE_OF_PAIRS = "trainer.loss.functions:cosine_of_pairs"  # loss_fn="cosine" of the Python API
NEEDS_SCORES, NEEDS_TEACHER = ("cosine", "cosent"), ("kl", "margin_mse")


def _todays_name(name: Any) -> Any:
    """Replaces the name under which older run files know cosine_of_pairs."""
    return COSINE_OF_PAIRS if name == "trainer.pair_losses:cosine_of_pairs" else name


class GuideConfig(Section):
    """A model that is not trained: candidates that it finds more similar than the positive are no negatives of InfoNCE
    (GISTEmbed, Solatorio 2024, arXiv:2402.16829)."""

    model: UserPath = Field(min_length=1)  # folder or hub id
    margin: float = 0.0  # candidates above the positive's cosine - margin are masked; -0.1: above it + 0.1
    relative_margin: float | None = Field(None, ge=0, lt=1)  # … above it less this share of its absolute value


class LossConfig(Section):
    """The loss of the whole global batch: one, or several with weights. See trainer/loss/."""

    # one of LOSSES or `package.module:function`, or {name: weight, …}
    name: Annotated[str | dict[str, float], BeforeValidator(_todays_name)] = "infonce"
    directions: Literal[tuple(DIRECTIONS)] = "query_to_doc"  # the pairs InfoNCE compares
    temperature: float = Field(0.05, gt=0)  # of infonce, cosent and kl's student
    temperature_lr: float | None = Field(None, gt=0)  # None: fixed
    teacher_temperature: float = Field(1.0, gt=0)
    # InfoNCE's: documents of the batch, or of the own device's part of it; own: the row's own hard negatives alone
    negatives: Literal["batch", "device", "own"] = "batch"
    mask_duplicates: bool = True
    mask_margin: float | None = None  # documents scored above positive - margin are no negatives; -0.1: above + 0.1
    mask_ratio: float | None = Field(None, gt=0)  # … above positive * ratio
    guide: GuideConfig | None = None  # a model that masks false negatives
    matryoshka: list[int] | dict[int, float] | None = None  # sizes of embeddings, with weights if a mapping

    @property
    def terms(self) -> dict[str, float]:
        """Weight by name of every loss."""
        return {self.name: 1.0} if isinstance(self.name, str) else self.name

    @property
    def dims(self) -> list[tuple[int | None, float]]:
        """(size, weight) of every size of embeddings that is trained, largest first; None: as the model makes it."""
        if not self.matryoshka:
            return [(None, 1.0)]
        weights = self.matryoshka if isinstance(self.matryoshka, dict) else dict.fromkeys(self.matryoshka, 1.0)
        return sorted(weights.items(), reverse=True)

    @model_validator(mode="after")
    def _names_and_weights(self):
        unknown = [name for name in self.terms if name not in LOSSES and not _FUNCTION.fullmatch(name)]
        if unknown or not self.terms:
            wrong = [f"name {name!r} is no loss.{about_value('loss.name', name, LOSSES)}" for name in unknown or ["{}"]]
            raise ValueError(f"{' '.join(wrong)} Known are {', '.join(LOSSES)} or package.module:function")
        if self.negatives == "own" and self.directions != "query_to_doc":
            about = f"directions {self.directions} compares with those of other rows"
            raise ValueError(f"negatives: own compares with the row's own documents, but {about}; leave one out")
        if any(weight <= 0 for weight in self.terms.values()):
            raise ValueError("name: every weight must be above 0")
        if any((dim is not None and dim < 1) or weight <= 0 for dim, weight in self.dims):
            raise ValueError("matryoshka: sizes and weights must be above 0")
        return self


_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


# Learning rate by model.finetune, where a run states none. Adapters begin at zero and are few: they need a larger one.
LEARNING_RATES = {"full": 2e-5, "lora": 1e-4, "qlora": 1e-4}


class OptimConfig(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); biases and norms take no weight decay."""

    # 8 bits: the moments take a quarter of the memory (Dettmers et al. 2022, arXiv:2110.02861)
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: float | None = Field(None, gt=0)  # None: RunConfig fills in that of LEARNING_RATES
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)  # decay of an average of the weights: what is evaluated, and final/

    @property
    def states_lr(self) -> bool:
        """True if the run's own description states the rate, False if it is a default."""
        return "lr" in self.model_fields_set

    def with_default_lr(self, lr: float) -> "OptimConfig":
        """Returns the section with a rate that counts as not stated."""
        return OptimConfig.model_construct(self.model_fields_set - {"lr"}, **(dict(self) | {"lr": lr}))


class TrainConfig(Section):
    """batch_size is global: rows per optimizer step over all ranks. micro_batch_tokens is the memory knob, per rank."""

    batch_size: int = Field(64, ge=2)
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    steps_per_epoch: int | None = Field(None, ge=1)  # None: a whole pass; fewer cut it, and the next epoch goes on
    micro_batch_tokens: Annotated[int, Field(ge=64)] | Literal["auto"] = "auto"
    gradient_checkpointing: bool = False  # blocks keep their input only; the rest is made again in the backward pass
    gradient_reduction: Literal["step", "chunk"] = "step"  # chunk: zero3 never holds a rank's whole gradient
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # of matrix products
    deterministic: bool = False  # on CUDA: the same bytes again on the same cards and versions; slower
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)  # lines on the screen; logs.jsonl holds every step
    timeout_minutes: float = Field(30.0, gt=0)  # how long a rank waits for another before the run fails
    max_skipped_steps: int = Field(25, ge=1)  # in a row; fp16 finds its loss scale in fewer
    callbacks: list[str] = []  # package.module:Class, see run_dir/callbacks.py

    @field_validator("callbacks")
    @classmethod
    def _named_like_functions(cls, names: list[str]) -> list[str]:
        wrong = [name for name in names if not _FUNCTION.fullmatch(name)]
        twice = [name for name in names if names.count(name) > 1]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not of the form package.module:Class")
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice; keep one")
        return names


class CheckpointConfig(Section):
    """Checkpoints beside those at the ends of epochs, and how many to keep (None: all)."""

    every_steps: int | None = Field(None, ge=1)
    every_minutes: float | None = Field(None, gt=0)
    keep_steps: int | None = Field(2, ge=1)  # of checkpoint-step-N
    keep_epochs: int | None = Field(None, ge=1)  # of checkpoint-epoch-N


TRAIN_LOSS = "train_loss"  # a watched metric that needs no evaluation set
GENERAL = "general"  # name of data.general among the evaluation sets


def _blend_or_none(value: Any) -> Any:
    """Returns auto, or None for the ways to write off, which YAML makes False. Raises ValueError for others."""
    word = value.strip().lower() if isinstance(value, str) else value
    if word is True or word not in ("auto", "off", "none", False, None):
        raise ValueError(f"{json.dumps(value)} is neither auto nor off")
    return "auto" if word == "auto" else None


BlendKey = Annotated[Literal["auto"] | bool | None, BeforeValidator(_blend_or_none)]  # never a bool once it is read


class WatchConfig(Section):
    """Evaluations: the best model, which final/ holds, early stopping, and warnings. tolerance: of a fall on
    data.general (by nDCG@10 beside train_loss), and of a rise of the train rows' similarities while the metric falls,
    before there is a warning."""

    metric: str = "nDCG@10"  # of data.eval (nDCG@10 …), SOURCE/metric, general/metric or train_loss
    metrics: Annotated[list[str], Field(min_length=1)] | None = None  # measured beside it; None: evaluation's defaults
    patience: int | None = Field(None, ge=1)  # epochs without a better value, after which the run ends
    min_delta: float = Field(0.0, ge=0)  # by which a better value must be better
    keep_last: bool = False  # the last model stays in last/ where final/ holds another
    blend: BlendKey = None  # auto: final/ may lie between the model before training and the best one
    # evaluations beside those at the ends of epochs
    every_steps: int | None = Field(None, ge=1)
    every_minutes: float | None = Field(None, gt=0)
    every_epochs: float | None = Field(None, gt=0, lt=1)  # a share of an epoch's steps
    tolerance: float = Field(0.02, gt=0)
    eval_loss: bool = False  # the loss on the eval split, at each evaluation

    @model_validator(mode="before")
    @classmethod
    def _without_keep_best(cls, values: Any) -> Any:
        """Reads older run files: what keep_best asked for is the rule now, and who did not want it had the last one."""
        if not isinstance(values, dict) or not isinstance(values.get("keep_best"), bool):
            return values
        rest = {key: value for key, value in values.items() if key != "keep_best"}
        return {"keep_last": not values["keep_best"]} | rest


class SourceConfig(Section):
    """Settings for the rows of one source. None: the run file's for all."""

    loss: LossConfig | None = None
    eval: ExtraSet = None  # evaluated beside data.eval, with the prompts of this source
    query_prompt: str | None = None
    passage_prompt: str | None = None


class RunConfig(Section):
    output_dir: UserPath = Field(min_length=1)
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    sources: dict[str, SourceConfig] = {}  # by the names in the shards' manifest
    optim: OptimConfig = Field(OptimConfig(), validate_default=True)
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    run_name: str | None = None  # on Weights & Biases

    @field_validator("optim")
    @classmethod
    def _rate_of_the_mode(cls, optim: OptimConfig, info: ValidationInfo) -> OptimConfig:
        model = info.data.get("model")  # absent where it has problems of its own
        return optim.with_default_lr(LEARNING_RATES[model.finetune]) if model and optim.lr is None else optim

    @property
    def own_prompts(self) -> OwnPrompts:
        """Prompts of single sources and rows, in place of the model's."""
        by_side = {side: {name: getattr(of, f"{side}_prompt") for name, of in self.sources.items()} for side in SIDES}
        stated = {side: {name: text for name, text in of.items() if text is not None} for side, of in by_side.items()}
        return OwnPrompts(**stated, row_query=self.data.row_query_prompt, row_passage=self.data.row_passage_prompt)

    @property
    def losses(self) -> dict[str, LossConfig]:
        """Every loss section by its key."""
        own = {f"sources.{name}.loss": source.loss for name, source in self.sources.items() if source.loss}
        return {"loss": self.loss} | own

    def loss_of(self, source: str) -> LossConfig:
        """The loss of a source's rows."""
        own = self.sources.get(source)
        return own.loss if own and own.loss else self.loss
