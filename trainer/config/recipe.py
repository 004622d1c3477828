"""The recipe of a run in plain lines, and the values in it that can hardly be meant. No torch."""

import math
from collections.abc import Iterator

from trainer.config.sections import DIRECTIONS, LEARNING_RATES, TRAIN_LOSS, FreezeConfig, LossConfig, RunConfig

PRECISIONS = {"fp32": "", "tf32": ", products rounded by CUDA"}
MODES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
_TEMPERED = ("infonce", "cosent", "kl")  # losses that have a temperature; a user's function is told it as well
_ADAPTERS = (1e-6, 1e-2)
RATES = {"full": (1e-7, 1e-3), "lora": _ADAPTERS, "qlora": _ADAPTERS}  # usual ones

Number = tuple[str, float | None, float, float, str]  # key, value, least and largest usual one, a hint


def recipe(config: RunConfig, own_loss: bool = False) -> list[str]:
    """Returns a line each about mode, precision, losses and learning rate. own_loss: a function replaces the losses."""
    precision = config.train.precision
    named = config.losses if not own_loss else {}
    return [
        f"mode: {_mode(config)}",
        f"precision: {precision}{PRECISIONS.get(precision, ', autocast over fp32 weights')}",
        *([f"loss: the function given to train(), at temperature {config.loss.temperature:g}"] if own_loss else []),
        *(f"{key}: {_loss(loss)}" for key, loss in named.items()),
        f"learning rate: {_rate(config)}",
    ]


def _mode(config: RunConfig) -> str:
    model, lora, frozen = config.model, config.model.lora, config.model.freeze
    if model.finetune == "full":
        parts = ["the embeddings"] * frozen.embeddings + [f"the first {frozen.layers} blocks"] * bool(frozen.layers)
        return "full fine-tuning" + (f", without {' and '.join(parts)}" if frozen != FreezeConfig() else "")
    bits = f" on {model.bits} bits" if model.bits else ""
    kinds = [name for name, used in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if used and not lora.start]
    shape = f"going on from {lora.start}" if lora.start else f"rank {lora.r}, alpha {lora.alpha:g}"
    return ", ".join([MODES[model.finetune] + bits, *kinds, shape, f"dropout {lora.dropout:g}"])


def _loss(loss: LossConfig) -> str:
    terms = loss.terms.items()
    parts = [" + ".join(name if len(terms) == 1 else f"{weight:g} x {name}" for name, weight in terms)]
    if _has_temperature(loss):
        learned = f"learned from there, rate {loss.temperature_lr:g}" if loss.temperature_lr else "fixed"
        parts.append(f"temperature {loss.temperature:g} ({learned})")
    if "infonce" in loss.terms:
        parts.append(_NEGATIVES[loss.negatives])
        parts += [f"directions {loss.directions}"] * (loss.directions != next(iter(DIRECTIONS)))
    if loss.matryoshka:
        parts.append(f"sizes {', '.join(str(size) for size, _ in loss.dims)}")
    return ", ".join(parts)


_NEGATIVES = {
    "batch": "negatives of the whole batch",
    "device": "negatives of the own device",
    "own": "the row's own hard negatives alone",
}


def _has_temperature(loss: LossConfig) -> bool:
    return any(name in _TEMPERED or ":" in name for name in loss.terms)


def _rate(config: RunConfig) -> str:
    """Describes optim.lr, its origin and its course."""
    optim, default = config.optim, LEARNING_RATES[config.model.finetune]
    origin = f"the default of {MODES[config.model.finetune]}"
    if optim.states_lr:
        origin = "as stated"
    elif optim.lr != default:
        origin = f"of run.json, with which the run began; the default of today is {default:g}"
    course = "constant" if optim.schedule == "constant" else f"falling to 0 ({optim.schedule})"
    warm_up = f"after a warm-up of {optim.warmup_ratio:.4g} of the steps " if optim.warmup_ratio else ""
    return f"{optim.lr:g} (optim.lr, {origin}), {warm_up}{course}; {optim.name}, weight decay {optim.weight_decay:g}"


def unusual(config: RunConfig, normalised: bool, steps: int) -> list[str]:
    """Returns a warning for each number far from what anyone trains with. normalised: similarities are cosines.
    steps: of the whole run."""
    kept = (config.optim.ema or 0.0) ** steps
    average = f"warning: optim.ema: {config.optim.ema} leaves {kept:.0%} of the starting weights in the average after"
    return ([f"{average} {steps} steps: final/ will hardly have learnt; take a smaller one"] if kept > 0.5 else []) + [
        f"warning: {key}: {value:g} is outside the usual range {least:g} … {most:g}{f' ({hint})' if hint else ''}"
        for key, value, least, most, hint in _numbers(config, normalised)
        if value is not None and not least <= value <= most
    ]


def _numbers(config: RunConfig, normalised: bool) -> Iterator[Number]:
    optim, watch, mode = config.optim, config.watch, config.model.finetune
    yield "optim.lr", optim.lr, *RATES[mode], f"{MODES[mode]}, default {LEARNING_RATES[mode]:g}"
    yield "optim.weight_decay", optim.weight_decay, 0, 0.5, ""
    yield "optim.betas", optim.betas[0], 0.5, 0.99, "the first"
    yield "optim.betas", optim.betas[1], 0.9, 0.99999, "the second"
    yield "optim.eps", optim.eps, 1e-15, 1e-3, ""
    yield "optim.warmup_ratio", optim.warmup_ratio, 0, 0.5, "a share of all steps"
    yield "optim.max_grad_norm", optim.max_grad_norm, 0.01, 100, "null turns clipping off"
    yield "optim.ema", optim.ema, 0.5, 0.99999, ""
    yield "train.epochs", config.train.epochs, 1, 200, ""
    if watch.metric != TRAIN_LOSS:
        yield "watch.min_delta", watch.min_delta, 0, 0.1, "metrics lie in 0 … 1"
    yield "watch.tolerance", watch.tolerance, 1e-4, 0.5, "metrics lie in 0 … 1"
    for key in ("query_max_len", "passage_max_len"):
        yield f"model.{key}", getattr(config.model, key), 8, 2**17, "tokens, prompt included"
    if config.data.mixing == "temperature":
        yield "data.mixing_temperature", config.data.mixing_temperature, 0.5, 100, "1 is by rows"
    yield from _adapter_numbers(config)
    for key, loss in config.losses.items():
        yield from _loss_numbers(key, loss, normalised)


def _adapter_numbers(config: RunConfig) -> Iterator[Number]:
    lora = config.model.lora
    if config.model.finetune == "full":
        return
    yield "model.lora.dropout", lora.dropout, 0, 0.5, ""
    if lora.start:  # its adapter says the others
        return
    yield "model.lora.r", lora.r, 1, 512, ""
    base = math.sqrt(lora.r) if lora.rslora else lora.r
    yield "model.lora.alpha", lora.alpha, 0.02 * base, 32 * base, f"0.02 to 32 times {'√r' if lora.rslora else 'r'}"


def _loss_numbers(key: str, loss: LossConfig, normalised: bool) -> Iterator[Number]:
    most = 1 if normalised else 100  # inner products of any size
    if _has_temperature(loss):
        scale = f"a scale of {loss.temperature:g} is temperature {1 / loss.temperature:.4g}"
        hint = scale if loss.temperature > most else "similarities are divided by it"
        yield f"{key}.temperature", loss.temperature, 0.005, most, hint
        yield f"{key}.temperature_lr", loss.temperature_lr, 1e-5, 0.5, ""
    if loss.guide:
        yield f"{key}.guide.margin", loss.guide.margin, -0.5, 0.5, "what lies above positive - margin is masked"
    if "kl" in loss.terms:
        yield f"{key}.teacher_temperature", loss.teacher_temperature, 0.01, 100, ""
    if normalised:
        yield f"{key}.mask_margin", loss.mask_margin, -0.5, 0.5, "what lies above positive - margin is masked"
    yield f"{key}.mask_ratio", loss.mask_ratio, 0.5, 1.5, "a smaller one leaves no negatives"
    for name, weight in loss.terms.items():
        yield f"{key}.name", weight, 1e-3, 1e3, f"the weight of {name}"
