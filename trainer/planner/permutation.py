"""A keyed permutation of 0..n-1 without a table, computed for any position, in both directions. No torch.

A generalised Feistel network over pairs (left, right) of a x b >= n numbers, with a and b near sqrt(n). A result
beyond n is permuted again until it is below n ("cycle walking"): Black and Rogaway 2002, Ciphers with Arbitrary
Finite Domains, CT-RSA 2002 (https://eprint.iacr.org/2001/012). Integers modulo 2^64 only: the same on every platform.
"""

import hashlib
from collections.abc import Callable
from math import isqrt

import numpy as np

from data_prep.texts.splitmix import mix

FEISTEL_ROUNDS = 8


def number_of(text: str) -> np.uint64:
    """Returns 64 bits of the text's sha256."""
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


class Permutation:
    """A permutation of range(n), n >= 1, drawn by a key."""

    def __init__(self, n: int, key: str):
        self.n = n
        high = isqrt(n - 1) + 1
        self._sides = np.uint64(high), np.uint64(-(-n // high))
        self._keys = [number_of(f"{key}|{round_}") for round_ in range(FEISTEL_ROUNDS)]

    def at(self, places: np.ndarray) -> np.ndarray:
        """Returns the numbers at these places: (m,) int64 -> (m,) int64."""
        return self._walk(places, self._forth)

    def place_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the places of these numbers: the inverse of at()."""
        return self._walk(numbers, self._back)

    def _walk(self, values: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        values = step(values.astype(np.uint64))
        outside = np.flatnonzero(values >= self.n)
        while len(outside):
            values[outside] = step(values[outside])
            outside = outside[values[outside] >= self.n]
        return values.astype(np.int64)

    def _forth(self, values: np.ndarray) -> np.ndarray:
        a, b = self._sides
        right, left = np.divmod(values, a)
        for round_ in range(0, FEISTEL_ROUNDS, 2):
            left = (left + mix(right + self._keys[round_]) % a) % a
            right = (right + mix(left + self._keys[round_ + 1]) % b) % b
        return right * a + left

    def _back(self, values: np.ndarray) -> np.ndarray:
        a, b = self._sides
        right, left = np.divmod(values, a)
        for round_ in reversed(range(0, FEISTEL_ROUNDS, 2)):
            right = (right + b - mix(left + self._keys[round_ + 1]) % b) % b
            left = (left + a - mix(right + self._keys[round_]) % a) % a
        return right * a + left
