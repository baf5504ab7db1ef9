"""Random numbers as a pure function of (seed, position): no generator object, no hidden state.

A counter-based hash (the finaliser of splitmix64, twice) gives the number at any position directly, so a
sample depends neither on what else is in its batch nor on what was drawn before it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio, odd: multiples of it visit every 64-bit number."""

BITS = 52
"""With 52 random bits u * total < total holds in float64 for every total, whatever the rounding."""


def uniforms(seeds: Sequence[int], start: int, count: int) -> NDArray[np.float64]:
    """(N, count) numbers in [0, 1): row n holds the draws of `seeds[n]` at positions start … start + count - 1."""
    keys = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF for seed in seeds], dtype=np.uint64))
    positions = np.arange(start, start + count, dtype=np.uint64) * GOLDEN
    bits = _mix(keys[:, None] + positions[None, :]) >> np.uint64(64 - BITS)
    return bits.astype(np.float64) * 2.0**-BITS


@lru_cache(maxsize=4)
def permutation(size: int, seed: int) -> tuple[int, ...]:
    """A shuffle of 0 … size - 1: the order of `size` draws of `seed` (the same in every library version)."""
    return tuple(np.argsort(uniforms([seed], 0, size)[0], kind="stable").tolist())


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function: a bijection of 64-bit numbers in which every input bit moves every output bit."""
    state = state + GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
