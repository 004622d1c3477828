"""Movement of a run: did its weights, its loss and its metric change. Imports no torch by itself."""

import base64
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 4  # numbers of every tensor: AdamW moves all that have a gradient
STILL = 1e-6  # share of their size by which weights must have moved
FLAT = 0.01  # share by which a loss must change before it has moved
FEW_STEPS = 4  # below which a change of the loss is the difference of two batches


def sample_of(names: Iterable[str], read: "Callable[[str], Tensor]") -> str:
    """Returns a few numbers of every tensor, spread over it, as text. read: gives a tensor by its name."""
    parts = []
    for name in sorted(names):
        flat = read(name).detach().flatten()
        parts.append(flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].float().cpu().numpy())
    return base64.b64encode(np.concatenate(parts).astype("<f4").tobytes()).decode()


def movement(began: str | None, ended: str) -> float | None:
    """Returns the change from one sample_of weights to another, as a share of their size; None without the first."""
    if began is None:
        return None
    one, other = (np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64) for text in (began, ended))
    return float(np.linalg.norm(other - one) / max(np.linalg.norm(one), 1e-30))


def nothing_learnt(steps: Sequence[dict], epochs: Sequence[dict], best: dict | None, moved: float | None) -> str | None:
    """Returns a line that says why the run learnt nothing; None where it did.

    steps, epochs: events of the log. best: Watch.summary(). moved: movement() of the trained weights, None where it is
    not known.
    """
    if reason := _unmoved(steps, moved):
        return f"this run learnt nothing: {reason}"
    flat, no_gain = _flat(steps, epochs), _no_gain(best)
    if flat and (no_gain or best is None or best["before_training"] is None):
        also = no_gain or "no metric says otherwise"
        return f"this run learnt nothing: {flat}; {also}. {_mend(steps)}"
    return None


def _mend(steps: Sequence[dict]) -> str:
    return f"Its learning rate (optim.lr) rose to {max(event['lr'] for event in steps):g}: try a larger one"


def _unmoved(steps: Sequence[dict], moved: float | None) -> str | None:
    applied = [event for event in steps if not event.get("skipped")]
    if not applied:
        return f"the gradient of each of the {len(steps)} steps was not finite, so all were skipped"
    if all(event["grad_norm"] == 0 for event in applied):
        return f"the gradient was 0 at each of the {len(applied)} steps"
    if moved is not None and moved < STILL:
        return f"the trained weights moved by {moved:.1g} of their size. {_mend(steps)}"
    return None


def _flat(steps: Sequence[dict], epochs: Sequence[dict]) -> str | None:
    """Compares the first and the last epoch, which see the same rows; of one epoch its first and last quarter."""
    means = [event["train_loss"] for event in epochs if event["train_loss"] is not None]
    if len(means) > 1:
        first, last, over = means[0], means[-1], "epoch"
    else:
        losses = [event["loss"] for event in steps if event["loss"] is not None]
        if len(losses) < FEW_STEPS:
            return None
        part = len(losses) // 4
        first, last, over = fmean(losses[:part]), fmean(losses[-part:]), "quarter of the steps"
    if abs(last - first) >= FLAT * abs(first):
        return None
    return f"the loss did not move ({first:.4f} over the first {over}, {last:.4f} over the last)"


def is_better(best: dict) -> bool | None:
    """True if the best epoch's metric lies above that before training, at the four digits that are shown."""
    before = best["before_training"]
    return None if before is None else round(best["value"], 4) > round(before, 4)


def _no_gain(best: dict | None) -> str | None:
    if best is None or is_better(best) is not False:
        return None
    return (
        f"no epoch was better than the model before training: {best['metric']} was {best['before_training']:.4f}, and "
        f"{best['value']:.4f} at best (epoch {best['epoch']})"
    )
