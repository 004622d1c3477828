"""Definitions of this subject."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from data_prep.common.errors import BadInput
from trainer.config.imports import add_working_folder
from trainer.config.sections import LOSSES, LossConfig


@dataclass
class LossBatch:
    """What a user's loss_fn(query_embeds, positive_embeds, batch) sees beside the two (m, d) tensors of m rows.

    The rows are those of the whole global batch, the same on every rank (with loss.negatives: device, of one rank). The
    function returns the loss of these rows, a scalar, which may depend on nothing but its arguments.
    row_ids, scores, teacher_positive: (m,). negative_embeds: (k, d) hard negatives; negative_row: (k,) row of each;
    teacher_negative: (k,). Scores that the data does not have are nan. temperature: a float, or 0-dim where learned.
    """

    row_ids: Tensor
    scores: Tensor
    negative_embeds: Tensor
    negative_row: Tensor
    teacher_positive: Tensor
    teacher_negative: Tensor
    temperature: float | Tensor
    source: str


def load_loss_fn(name: str) -> Callable:
    """The function that `package.module:function` names. Raises BadInput."""
    module, _, function = name.partition(":")
    add_working_folder()
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises is about the user's module
        raise BadInput(f"loss.name: {name} cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise BadInput(f"loss.name: {name} is not a function")
    return found


def import_functions(losses: Iterable[LossConfig]) -> None:
    """Imports every user's function that the losses name. Raises BadInput."""
    for loss in losses:
        for name in loss.terms:
            if name not in LOSSES:
                load_loss_fn(name)
