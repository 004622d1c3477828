"""Keys: a score and a document's number in one integer, so that the order of integers is the order of results.

- The upper 32 bits hold a float32 score, mapped so that a higher score is a higher integer.
- The lower 32 bits hold the number, counted down: of equal scores the lower number comes first.
- No two documents have the same key, so a top k, and a merge of several, has one result.
"""

import torch
from torch import Tensor

NOTHING = torch.iinfo(torch.int64).min  # below the key of any document
LAST = 2**32 - 1  # the highest number
_BELOW_SIGN = 0x7FFFFFFF


def pack(scores: Tensor, numbers: Tensor) -> Tensor:
    """Returns int64 keys. scores: (…, n) float32; one that is not a number counts as -inf. numbers: (n,) int64."""
    scores = torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0  # no negative zero
    return (_flipped(scores.view(torch.int32)).long() << 32) | (LAST - numbers)


def scores_of(keys: Tensor) -> Tensor:
    """Returns the float32 scores in keys, none of which may be NOTHING."""
    return _flipped((keys >> 32).int()).view(torch.float32)


def numbers_of(keys: Tensor) -> Tensor:
    """Returns the int64 numbers in keys, none of which may be NOTHING."""
    return LAST - (keys & LAST)


def _flipped(bits: Tensor) -> Tensor:
    """Maps the bits of a float32 to an int32 of the same order, and back: negative floats count the other way."""
    return torch.where(bits < 0, bits ^ _BELOW_SIGN, bits)


def merge(keys: Tensor, depth: int) -> Tensor:
    """Returns the `depth` highest keys of each row, highest first, filled up with NOTHING. keys: (rows, any number)."""
    if keys.shape[1] < depth:
        keys = torch.cat([keys, keys.new_full((keys.shape[0], depth - keys.shape[1]), NOTHING)], dim=1)
    return keys.topk(depth, dim=1).values
