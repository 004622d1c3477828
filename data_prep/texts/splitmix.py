"""The mixing step of splitmix64 (Steele, Lea and Flood 2014)."""

import numpy as np

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def mix(values: np.ndarray) -> np.ndarray:
    """Bijection of uint64 whose every output bit depends on all input bits; same shape, any but 0-dim."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def splitmix(values: np.ndarray) -> np.ndarray:
    """Output of splitmix64 for these states: uint64 -> uint64, same shape."""
    return mix(values + GOLDEN_GAMMA)
