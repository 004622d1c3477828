"""Losses that users write: what they see, and how they are imported."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from data_prep.common.errors import BadInput
from trainer.config.imports import add_working_folder
from trainer.config.sections import LOSSES, LossConfig


@dataclass
class LossBatch:
    """Third argument of a user's loss_fn(query_embeds, positive_embeds, batch), beside two (m, d) tensors of m rows.

    The rows are those of the global batch, the same on every rank (with loss.negatives: device, those of one rank). The
    function returns the loss of these rows, a scalar that depends on nothing but its arguments. Missing scores are nan.
    """

    row_ids: Tensor  # (m,) int64
    scores: Tensor  # (m,)
    negative_embeds: Tensor  # (k, d) hard negatives
    negative_row: Tensor  # (k,) row of each hard negative
    teacher_positive: Tensor  # (m,)
    teacher_negative: Tensor  # (k,)
    temperature: float | Tensor  # 0-dim where learned
    source: str


def load_loss_fn(name: str) -> Callable:
    """Imports the function that `package.module:function` names. Raises BadInput."""
    module, _, function = name.partition(":")
    add_working_folder()
    try:
        loss_fn = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises is about the user's module
        raise BadInput(f"loss.name: {name} cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(loss_fn):
        raise BadInput(f"loss.name: {name} is not a function")
    return loss_fn


def import_functions(losses: Iterable[LossConfig]) -> None:
    """Imports every user's function that the losses name. Raises BadInput."""
    for name in (name for loss in losses for name in loss.terms if name not in LOSSES):
        load_loss_fn(name)
